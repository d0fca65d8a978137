"""The page of `petl-bench report --html`: what it knows, and what it is made of."""
