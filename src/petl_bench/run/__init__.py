"""One run: read `run.py` first."""
