"""Before a run: memory, operations and parameters of one update, without weights, rows or a device."""
