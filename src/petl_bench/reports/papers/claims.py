"""Claims of papers, tested on a study's records by a small closed set of tests.

A claim's `test` names its `kind`. Methods and tasks are the study's names, and all of its tasks where `tasks` is left
out. Points are percent points of the primary metric, or of `metric`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from petl_bench.records.schema import Record
from petl_bench.records.study_file import Claim, StudyFile
from petl_bench.reports.papers.claim_kinds import apply_test, check_claim
from petl_bench.reports.statistics.study_records import StudyRecords
from petl_bench.reports.tables.table import ReportTable

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_TESTABLE = "not testable here"
NOT_RUN = "not run yet"


def claim_rows(study: StudyFile, records: Iterable[Record]) -> list[dict[str, Any]]:
    """One mapping a claim: claim, source, verdict, and in words the numbers behind it.

    Raises:
        RequestError: where a claim's test is of no known kind, or names what the study does not have.
    """
    ours = StudyRecords(study, records)
    return [_row(claim, ours) for claim in study.claims]


def _row(claim: Claim, ours: StudyRecords) -> dict[str, Any]:
    check_claim(claim, ours.study.methods, ours.study.tasks)
    row: dict[str, Any] = {"claim": claim.claim, "source": claim.source}
    if claim.untestable is not None:
        return row | {"verdict": NOT_TESTABLE, "numbers": claim.untestable}
    outcome = apply_test(claim.test, ours)
    verdict = {None: NOT_RUN, True: REPRODUCED, False: NOT_REPRODUCED}[outcome.holds]
    return row | {"verdict": verdict, "numbers": outcome.numbers}


def claims_table(study: StudyFile, records: Iterable[Record]) -> ReportTable | None:
    """The claims with their verdicts, and the study's deviations as notes; None where nothing is claimed."""
    rows = claim_rows(study, records)
    if not rows:
        return None
    cells = [[row["claim"], row["verdict"], row["numbers"], row["source"]] for row in rows]
    notes = [f"deviation: {deviation}" for deviation in study.deviations]
    header = ["claim", "verdict", "numbers", "source"]
    return ReportTable(f"{study.name}: claims", header, cells, notes, prose=("claim", "numbers", "source"))
