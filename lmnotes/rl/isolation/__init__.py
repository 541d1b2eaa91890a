"Walls of the kernel around a process, and a conversation between two processes that do not trust each other"
