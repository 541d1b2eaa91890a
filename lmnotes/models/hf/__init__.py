"Hugging Face models: configs, checks, quantization, loading and a patched `forward`"
