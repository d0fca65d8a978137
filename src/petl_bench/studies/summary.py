"""What `petl-bench study` prints: what would run, and what became of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

from petl_bench.records.study_file import PlannedCosts
from petl_bench.reports.fields import MIB, MISSING
from petl_bench.reports.render import ReportTable, print_table
from petl_bench.studies.folder import FAILURES, FINISHED, INTERRUPTED, RUNNING, WAITING
from petl_bench.studies.study import Study

_ORDER = (FINISHED, RUNNING, WAITING, INTERRUPTED, *FAILURES)


def print_plan(study: Study, costs: list[PlannedCosts], write: Callable[[str], None], *, as_json: bool) -> None:
    """Prints every method on every task: what is finished, what would run, and its estimated costs.

    Args:
        study: The study.
        costs: Estimated costs by method and task.
        write: Prints text.
        as_json: Whether to print a JSON list with an object a run.
    """
    if as_json:
        by_cell = {(cost.method, cost.task): asdict(cost) for cost in costs}
        rows = [
            asdict(run) | {"status": status, "costs": by_cell.get((run.method, run.task))}
            for run, status in study.statuses()
        ]
        write(json.dumps(rows, indent=2))
        return
    print_table(_plan_table(study, costs))


def _plan_table(study: Study, costs: list[PlannedCosts]) -> ReportTable:
    by_cell = {(cost.method, cost.task): cost for cost in costs}
    statuses: dict[tuple[str, str, float | None], list[str]] = {}
    for run, status in study.statuses():
        statuses.setdefault((run.method, run.task, run.learning_rate), []).append(status)
    with_rates = any(rate is not None for _, _, rate in statuses)
    rows = []
    for (method, task, rate), found in statuses.items():
        finished = found.count(FINISHED)
        failed = sum(status in FAILURES for status in found)
        cost = by_cell.get((method, task)) or PlannedCosts(method, task)
        rows.append(
            [
                f"{method} on {task}",
                *([MISSING if rate is None else f"{rate:g}"] if with_rates else []),
                *(str(count) if count else MISSING for count in (len(found) - finished - failed, finished, failed)),
                _count(cost.trainable_method),
                _count(cost.trainable_head),
                MISSING if cost.peak_bytes is None else f"{cost.peak_bytes / MIB:,.0f}",
            ]
        )
    header = ["run", *(["rate"] if with_rates else []), "to run", "finished", "failed", "method params", "head params"]
    notes = sorted({f"{cost.method} on {cost.task}: {cost.note}" for cost in costs if cost.note})
    title = f"{study.file.name}: {len(study.runs)} runs in {study.folder.path}"
    return ReportTable(title, [*header, "predicted MiB"], rows, notes)


def _count(number: int | None) -> str:
    return MISSING if number is None else f"{number:,}"


def print_outcome(study: Study, write: Callable[[str], None], *, as_json: bool) -> None:
    """Prints how many runs there are of each kind, and each one that failed with its reason."""
    found = study.statuses()
    if as_json:
        write(json.dumps([asdict(run) | {"status": status} for run, status in found], indent=2))
        return
    counts = Counter(status for _, status in found)
    counted = ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in _ORDER if counts[status])
    write(f"{study.file.name}: {len(found)} runs: {counted}")
    for run, status in found:
        if status in FAILURES:
            record = study.folder.record(run)
            reason = record.error if record is not None else None
            write(f"  {status.replace('_', ' ')}: {run.method} on {run.task}, seed {run.seed}: {reason}")
    if any(status in FAILURES for _, status in found):
        write("  `--retry failed` makes these again")
    write(f"  petl-bench report {study.folder.path}")
