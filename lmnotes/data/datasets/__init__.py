"Datasets by kind: every module of this folder registers its own names"
