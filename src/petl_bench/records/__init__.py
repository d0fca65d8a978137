"""The record of a run: its schema, its identity and its store."""
