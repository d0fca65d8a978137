"""Studies: many runs as one thing that survives, is shared by processes, and is held against papers."""
