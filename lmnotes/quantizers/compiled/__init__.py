"Kernels that need a compiler; `lmnotes.quantizers.kernels` imports their modules when one is asked for"
