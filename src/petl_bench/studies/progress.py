"""What a study prints: its progress while it runs, its plan, and its outcome."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedCosts, PlannedRun
from petl_bench.reports.cost_columns import device_seconds
from petl_bench.reports.fields import MIB, MISSING, shown_score
from petl_bench.reports.render import ReportTable, print_table
from petl_bench.studies.executors import sbatch_script
from petl_bench.studies.folder import FAILURES, FINISHED, INTERRUPTED, RUNNING, WAITING, StudyFolder

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

    from petl_bench.studies.study import Study

# Time between two updates of the display.
_SECONDS = 1.0
_MARKS = {RUNNING: "▶", WAITING: "·", INTERRUPTED: "·", FINISHED: "✓"}
_ORDER = (FINISHED, RUNNING, WAITING, INTERRUPTED, *FAILURES)

_log = logging.getLogger(__name__)


class StudyProgress:
    """Shows the progress of runs; within its context, `update` is called repeatedly.

    Args:
        runs: The requested runs.
        folder: The study's folder.
    """

    def __init__(self, runs: list[PlannedRun], folder: StudyFolder) -> None:
        self._runs, self._folder = runs, folder
        self._logged = {run.key for run in runs if folder.ended(run)}
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> StudyProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.update(now=True)
        if self._live is not None:
            self._live.stop()

    def update(self, *, now: bool = False) -> None:
        """Shows what is new."""
        if not now and time.monotonic() - self._drawn < _SECONDS:
            return
        self._drawn = time.monotonic()
        runs = _expected(self._runs)
        statuses = {run.key: self._folder.status(run) for run in runs}
        counts = Counter(statuses.values())
        if self._live is not None:
            self._live.update(self._table(runs, statuses, counts), refresh=True)
            return
        for run in runs:
            if self._folder.ended(run) and run.key not in self._logged:
                self._logged.add(run.key)
                _log.info("%s (%s)", self._line(run), self._summary(runs, statuses, counts))

    def _line(self, run: PlannedRun) -> str:
        record = self._folder.record(run)
        assert record is not None
        where = f"{run.method} on {run.task}, seed {run.seed}"
        rate = "".join(f", {setting_name(key)} {value}" for key, value in run.tried.items())
        if record.status != FINISHED or record.protocol is None:
            return f"{where}{rate}: {record.status}: {record.error}"
        metric = record.protocol.metric
        return f"{where}{rate}: {shown_score(metric, record.selected_scores[metric])}"

    def _summary(self, runs: list[PlannedRun], statuses: dict[str, str], counts: Counter[str]) -> str:
        failed = sum(counts[status] for status in FAILURES)
        left = [run for run in runs if statuses[run.key] not in (FINISHED, *FAILURES)]
        parts = [f"{counts[FINISHED]} of {len(runs)} done", f"{counts[RUNNING]} running", f"{failed} failed"]
        expected = expected_seconds(left, self._runs, self._folder)
        if expected is None:
            return ", ".join(parts)
        return ", ".join([*parts, f"{_duration(sum(expected) / max(1, counts[RUNNING]))} left"])

    def _table(self, runs: list[PlannedRun], statuses: dict[str, str], counts: Counter[str]) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        tasks = list(dict.fromkeys(run.task for run in runs))
        table.add_column("method")
        for task in tasks:
            # As Text, so that brackets in names are not read as markup.
            table.add_column(Text(task), justify="center")
        for method in dict.fromkeys(run.method for run in runs):
            cells = []
            for task in tasks:
                of_cell = [statuses[run.key] for run in runs if (run.method, run.task) == (method, task)]
                cells.append("".join(_MARKS.get(status, "✗") for status in of_cell))
            table.add_row(Text(method), *cells)
        # Above the table and not in it, because the table may be narrower.
        return Group(Text(self._summary(runs, statuses, counts)), table, "✓ finished  ▶ running  · waiting  ✗ failed")


def expected_seconds(left: list[PlannedRun], runs: list[PlannedRun], folder: StudyFolder) -> list[float] | None:
    """Predicts how long runs take, by the mean of similar ones: same method and task, else same task, else any.

    Args:
        left: The runs that are to be made.
        runs: The runs that may already have been made.
        folder: The study's folder.

    Returns:
        Seconds for each run of `left`; None if no run has been timed.
    """
    took: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        record = folder.record(run)
        if record is not None and (seconds := _seconds(record)) is not None:
            for kind in _kinds(run):
                took.setdefault(kind, []).append(seconds)
    if not took:
        return None
    return [statistics.fmean(took[next(kind for kind in _kinds(run) if kind in took)]) for run in left]


def _kinds(run: PlannedRun) -> tuple[tuple[str, ...], ...]:
    return (run.method, run.task), (run.task,), ()


def _expected(runs: list[PlannedRun]) -> list[PlannedRun]:
    """Returns the runs to make, with the first settings of a method in place of those that will be chosen."""
    first: dict[tuple[str, str], str] = {}
    for run in runs:
        if run.chosen is None:
            first.setdefault((run.method, run.task), run.candidate)
    return [
        run
        for run in runs
        if run.is_trial or run.chosen or (run.chosen is None and run.candidate == first[run.method, run.task])
    ]


def setting_name(key: str) -> str:
    """Returns a setting's name for messages."""
    return "rate" if key == "train.learning_rate" else key.rpartition(".")[2]


def _seconds(record: Record) -> float | None:
    """Returns how long a run took; of features cached by another run, only the time to read them counts."""
    seconds = device_seconds(record)
    return None if seconds is None or record.time is None else seconds + (record.time.cache_seconds or 0.0)


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if seconds < 60:
        return "under a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def print_plan(
    study: Study, costs: list[PlannedCosts], write: Callable[[str], None], *, as_json: bool, wide: bool = False
) -> None:
    """Prints every method on every task: what is finished, what would run, the estimated costs and the duration.

    Args:
        study: The study.
        costs: Estimated costs by method and task.
        write: Prints text.
        as_json: Whether to print a JSON list with an object for each run.
        wide: Whether to show all columns, even if there is no room for them.
    """
    if as_json:
        by_cell = {(cost.method, cost.task): asdict(cost) for cost in costs}
        rows = [
            asdict(run) | {"status": status, "costs": by_cell.get((run.method, run.task))}
            for run, status in study.statuses()
        ]
        write(json.dumps(rows, indent=2))
        return
    print_table(replace(_plan_table(study, costs), whole=wide))
    _print_script(study, write)


def _print_script(study: Study, write: Callable[[str], None]) -> None:
    """Prints the script that Slurm would get for the remaining runs, if the study's jobs go to Slurm."""
    executor = study.request.executor
    left = sum(status not in (FINISHED, *FAILURES) for _, status in study.statuses())
    if executor.name != "slurm" or executor.cluster != "slurm" or not left:
        return
    if importlib.util.find_spec("submitit") is None:
        _log.warning("submitit, which makes the script for sbatch, is not installed: pip install 'petl-bench[slurm]'.")
        return
    write(sbatch_script(executor, study.folder, left))


def _plan_table(study: Study, costs: list[PlannedCosts]) -> ReportTable:
    by_cell = {(cost.method, cost.task): cost for cost in costs}
    by_row: dict[tuple[str, str, float | None], list[tuple[PlannedRun, str]]] = {}
    for run, status in study.statuses():
        by_row.setdefault((run.method, run.task, run.learning_rate), []).append((run, status))
    with_rates = any(rate is not None for _, _, rate in by_row)
    to_make = [run for runs in by_row.values() for run, status in runs if status not in (FINISHED, *FAILURES)]
    expected = expected_seconds(to_make, study.file.runs, study.folder)
    seconds = {} if expected is None else {run.key: took for run, took in zip(to_make, expected, strict=True)}
    rows = []
    for (method, task, rate), runs in by_row.items():
        left = [run for run, status in runs if status not in (FINISHED, *FAILURES)]
        failed = sum(status in FAILURES for _, status in runs)
        cost = by_cell.get((method, task)) or PlannedCosts(method, task)
        rows.append(
            [
                f"{method} on {task}",
                *([MISSING if rate is None else f"{rate:g}"] if with_rates else []),
                *(str(count) if count else MISSING for count in (len(left), len(runs) - len(left) - failed, failed)),
                _duration(sum(seconds[run.key] for run in left)) if left and seconds else MISSING,
                MISSING if cost.peak_bytes is None else f"{cost.peak_bytes / MIB:,.0f}",
                _count(cost.batch_size),
                _count(cost.trainable_method),
                _count(cost.trainable_head),
            ]
        )
    header = ["run", *(["rate"] if with_rates else []), "to run", "finished", "failed", "time left"]
    header += ["estimated MiB", "batch", "method params", "head params"]
    notes = [_time_note(expected, len(to_make))]
    notes += sorted({f"{cost.method} on {cost.task}: {cost.note}" for cost in costs if cost.note})
    title = f"{study.file.name}: {len(study.runs)} runs in {study.folder.path}"
    return ReportTable(title, header, rows, notes)


def _time_note(seconds: list[float] | None, left: int) -> str:
    if not left:
        return "time left: none, as no run is left"
    if seconds is None:
        return "time left: unknown, as no run here has been timed yet"
    return (
        f"time left: {_duration(sum(seconds))} for all, one run after the other, by the mean time of the finished runs "
        "of the same method and task, else of the same task, else of any"
    )


def _count(number: int | None) -> str:
    return MISSING if number is None else f"{number:,}"


def print_outcome(study: Study, write: Callable[[str], None], *, as_json: bool) -> None:
    """Prints the number of runs of each status, and each failed run with its reason."""
    statuses = study.statuses()
    if as_json:
        write(json.dumps([asdict(run) | {"status": status} for run, status in statuses], indent=2))
        return
    counts = Counter(status for _, status in statuses)
    counted = ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in _ORDER if counts[status])
    write(f"{study.file.name}: {len(statuses)} runs: {counted}")
    for run, status in statuses:
        if status in FAILURES:
            record = study.folder.record(run)
            reason = record.error if record is not None else None
            write(f"  {status.replace('_', ' ')}: {run.method} on {run.task}, seed {run.seed}: {reason}")
    if any(status in FAILURES for _, status in statuses):
        write("  `--retry failed` makes these again")
    write(f"  petl-bench report {study.folder.path}")
