"Architectures by name: every module of this folder registers its own parts and recipes"
