"""Data in: rows, labels, splits and metrics."""
