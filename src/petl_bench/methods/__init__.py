"""How a backbone is adapted: one folder per method."""
