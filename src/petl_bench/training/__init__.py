"""The training loop. It sees a model, never a method."""
