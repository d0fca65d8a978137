"""Rewrites the records of older schemas below some folders in the present schema.

python scripts/migrate_records.py results

Reports read older records without it: the script is for records that are committed or shared. It only renames fields.
"""

from __future__ import annotations

import argparse

from petl_bench.records.reading import check_hash, migrated
from petl_bench.records.store import find_record_files, read_json, write_record


def main() -> None:
    """Migrates every record below the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folders of runs, searched for records")
    changed = 0
    for file in find_record_files(parser.parse_args().folders):
        content = read_json(file)
        check_hash(content)
        new = migrated(content)
        if new is not content:
            write_record(file, new)
            changed += 1
    print(f"{changed} records rewritten")


if __name__ == "__main__":
    main()
