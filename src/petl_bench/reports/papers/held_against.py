"""What the studies below some folders are held against: published rows and claims, for `petl-bench report`."""

from __future__ import annotations

from typing import Any

from petl_bench.records.schema import Record
from petl_bench.records.study_file import StudyFile
from petl_bench.reports.papers.claims import claim_rows, claims_table
from petl_bench.reports.papers.published import published_rows, published_table
from petl_bench.reports.tables.table import ReportTable


def study_tables(studies: list[tuple[StudyFile, list[Record]]]) -> list[ReportTable]:
    """Published rows and claims of each study, where it has them."""
    tables = [make(study, records) for study, records in studies for make in (published_table, claims_table)]
    return [table for table in tables if table is not None]


def study_json(studies: list[tuple[StudyFile, list[Record]]]) -> dict[str, Any]:
    """The same for JSON, each row with its study's name: nothing is rounded."""
    return {
        "published": [
            {"study": study.name} | row for study, records in studies for row in published_rows(study, records)
        ],
        "claims": [{"study": study.name} | row for study, records in studies for row in claim_rows(study, records)],
        "deviations": {study.name: study.deviations for study, _ in studies},
    }
