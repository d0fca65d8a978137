"""Removes measured times and speeds from the records below some folders.

python scripts/drop_times.py results

For records that are to be published and were made while the machine did other work: their scores are right, their times
are not. Reports then have no columns of times.
"""

from __future__ import annotations

import argparse

from petl_bench.records.reading import check_hash
from petl_bench.records.store import find_record_files, read_json, read_record, write_record


def main() -> None:
    """Rewrites every record below the folders that has times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folders of runs, searched for records")
    changed = 0
    for file in find_record_files(parser.parse_args().folders):
        content = read_json(file)
        if content.get("time") is not None or content.get("inference") is not None:
            check_hash(content)
            write_record(file, content | {"time": None, "inference": None})
            read_record(file)
            changed += 1
    print(f"{changed} records rewritten")


if __name__ == "__main__":
    main()
