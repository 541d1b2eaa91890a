"Before a run starts: which options have an effect, how a command is written, and a plan that refuses what the run would"
