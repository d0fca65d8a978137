"""`python -m petl_bench` is `petl-bench`."""

from petl_bench.cli import main

if __name__ == "__main__":
    main()
