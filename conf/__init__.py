"""The shipped settings, installed as `petl_bench.conf` so that Hydra finds them."""
