"""Mirrors of a run on a dashboard; never the source of a number."""
