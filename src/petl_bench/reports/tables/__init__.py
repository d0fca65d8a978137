"""Tables of text cells, and the forms that they are written in."""
