"""Studies: grids of runs that survive interruptions, are shared by processes, and are compared with papers."""

# In the order of their classes in `petl_bench.studies.executors`; defined here so that the command line imports fast.
EXECUTORS = ("local", "slurm", "ray")
