"""Studies: grids of runs that survive interruptions, are shared by processes, and are compared with papers."""

# Their classes are in `petl_bench.studies.executors`; the names are here so that the command line imports fast.
EXECUTORS = ("local", "slurm", "ray")
