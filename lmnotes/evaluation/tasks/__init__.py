"Groups of tasks and measurements: every module of this folder registers its own names"
