"""Claims of papers, tested on a study's records by a small closed set of tests.

A claim's `test` names its `kind`. Methods and tasks are the study's names, and all of its tasks where `tasks` is left
out. Points are percent points of the primary metric, or of `metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.records.schema import Record
from petl_bench.records.study_file import Claim, StudyFile
from petl_bench.reports.claim_tests import (
    NEEDS,
    Outcome,
    better,
    comparable,
    params_at_most,
    ratio,
    same_choice,
    share_at_most,
)
from petl_bench.reports.fields import QUANTITIES
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import StudyRecords

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


@dataclass(frozen=True)
class Kind:
    """A kind of test: how it is computed, and the keys that it takes."""

    test: Callable[[dict[str, Any], StudyRecords], Outcome]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


KINDS = {
    "share_at_most": Kind(share_at_most, ("method", "percent")),
    "params_at_most": Kind(params_at_most, ("method", "millions")),
    "ratio": Kind(ratio, ("quantity", "of", "over", "at_least")),
    "better": Kind(better, ("method", "than"), ("at_least", "metric", "needs")),
    "comparable": Kind(comparable, ("method", "to", "within"), ("metric", "needs")),
    "same_choice": Kind(same_choice, ("method", "tasks"), ("within",)),
}

_ONE_NAME = ("kind", "method", "to", "of", "over", "quantity", "metric", "needs")

_NAMES = ("than", "tasks")


def apply_test(test: dict[str, Any], ours: StudyRecords) -> Outcome:
    """Computes the test of a claim that `check_claim` let pass."""
    test = {"tasks": ours.study.tasks} | test
    lists = {key: _listed(test[key]) for key in _NAMES if key in test}
    return KINDS[test["kind"]].test(test | lists, ours)


def check_claim(claim: Claim, methods: Iterable[str], tasks: Iterable[str]) -> None:
    """Raises RequestError, naming the claim, where it cannot be computed from a study of these methods and tasks."""
    where = f"The claim {claim.claim!r}: test"
    if claim.untestable is not None:
        if claim.test:
            raise RequestError(f"{where} and untestable are both given: leave one out.")
        return
    test = claim.test
    for key, value in test.items():
        if key in _ONE_NAME and not isinstance(value, str):
            raise RequestError(f"{where}.{key}={value} must be one name.")
        if key in _NAMES and not (_listed(value) and all(isinstance(name, str) for name in _listed(value))):
            raise RequestError(f"{where}.{key}={value} must be a name or a list of names.")
    if test.get("kind") not in KINDS:
        raise unknown_choice(f"{where}.kind", test.get("kind"), KINDS)
    kind = KINDS[test["kind"]]
    allowed = ("kind", "tasks", *kind.required, *kind.optional)
    for key in test:
        if key not in allowed:
            raise unknown_choice(f"{where} has a key that kind={test['kind']} does not take: key", key, allowed)
    for key in kind.required:
        if key not in test:
            raise RequestError(f"{where} of kind={test['kind']} must give {key}.")
    named = [name for key in ("method", "than", "to", "of", "over") for name in _listed(test.get(key, []))]
    for names, known, what in ((named, methods, "method"), (_listed(test.get("tasks", [])), tasks, "task")):
        for name in names:
            if name not in set(known):
                raise unknown_choice(f"{where} names a {what} that the study does not have: {what}", name, known)
    for key, choices in (("quantity", QUANTITIES), ("needs", NEEDS)):
        if key in test and test[key] not in choices:
            raise unknown_choice(f"{where}.{key}", test[key], choices)
    for key in ("percent", "millions", "at_least", "within"):
        if key in test and not isinstance(test[key], int | float):
            raise RequestError(f"{where}.{key}={test[key]} must be a number.")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
