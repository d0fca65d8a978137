"""Chooses the layers to adapt by what their states tell of the task, before anything is trained."""
