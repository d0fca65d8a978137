"""What is compared: runs grouped over their seeds, and what can be said of the groups."""
