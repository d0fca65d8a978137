"""`python -m petl_bench` is `petl-bench`."""

import sys

from petl_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
