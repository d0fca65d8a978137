"""Estimates the memory, operations and parameters of one update before a run, without weights, rows or a device."""
