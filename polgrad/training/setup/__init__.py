"""From settings to a run: its parts, what it was before, whose directory it is, what it says first."""
