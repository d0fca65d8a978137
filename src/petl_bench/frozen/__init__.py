"""Frozen layers, computed once: split point, features, cache."""
