"""The closed set of tests that a claim can ask for, and what each takes; docs/reproducing.md says it in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.records.study_file import Claim
from petl_bench.reports.papers.choice_claims import same_choice
from petl_bench.reports.papers.cost_claims import QUANTITIES, params_at_most, ratio, share_at_most
from petl_bench.reports.papers.outcome import Outcome
from petl_bench.reports.papers.score_claims import NEEDS, better, comparable
from petl_bench.reports.statistics.study_records import StudyRecords


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
