"""What a run stands on: its processes, its devices, their memory, and compiled programs on disk."""
