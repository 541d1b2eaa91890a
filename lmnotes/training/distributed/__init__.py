"Training with several processes: process group, DDP and FSDP, launchers, and a check that all of them train alike"
