"""The page of `petl-bench report --html`: its data, its scripts and its styles."""
