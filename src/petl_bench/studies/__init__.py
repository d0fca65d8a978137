"""Studies: grids of runs that survive interruptions, are shared by processes, and are compared with papers."""
