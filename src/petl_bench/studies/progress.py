"""What a study prints: how far it is while it runs, what would run, what became of it, and the answer of a choice."""

from __future__ import annotations

import json
import logging
import math
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedCosts, PlannedRun, selection_score
from petl_bench.reports.differences import find_differences
from petl_bench.reports.fields import MIB, MISSING
from petl_bench.reports.jackknife import pseudo_values
from petl_bench.reports.ranking import Comparison, compare
from petl_bench.reports.render import ReportTable, print_table
from petl_bench.reports.report import write_report
from petl_bench.reports.results_table import study_results
from petl_bench.reports.significance import over_rows, over_seeds_and_rows
from petl_bench.studies.choice import REFERENCE
from petl_bench.studies.folder import FAILURES, FINISHED, INTERRUPTED, RUNNING, WAITING, StudyFolder

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

    from petl_bench.studies.choose import Choice
    from petl_bench.studies.study import Study

# Between two drawings.
_SECONDS = 1.0
_MARKS = {RUNNING: "▶", WAITING: "·", INTERRUPTED: "·", FINISHED: "✓"}
_ORDER = (FINISHED, RUNNING, WAITING, INTERRUPTED, *FAILURES)

_log = logging.getLogger(__name__)


class Progress:
    """Shows what becomes of runs; within it `update` is called again and again.

    Args:
        runs: Those that are asked for.
        folder: Where they lie.
    """

    def __init__(self, runs: list[PlannedRun], folder: StudyFolder) -> None:
        self._runs, self._folder = runs, folder
        self._logged = {run.key for run in runs if folder.ended(run)}
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Progress:
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
        wanted = _expected(self._runs)
        statuses = {run.key: self._folder.status(run) for run in wanted}
        counts = Counter(statuses.values())
        if self._live is not None:
            self._live.update(self._table(wanted, statuses, counts), refresh=True)
            return
        for run in wanted:
            if self._folder.ended(run) and run.key not in self._logged:
                self._logged.add(run.key)
                _log.info("%s (%s)", self._line(run), self._summary(wanted, statuses, counts))

    def _line(self, run: PlannedRun) -> str:
        record = self._folder.record(run)
        assert record is not None
        where = f"{run.method} on {run.task}, seed {run.seed}"
        rate = "".join(f", {_short(key)} {value}" for key, value in run.tried.items())
        if record.status != FINISHED or record.protocol is None:
            return f"{where}{rate}: {record.status}: {record.error}"
        metric = record.protocol.metric
        return f"{where}{rate}: {metric} {record.selected_scores[metric]:.4f}"

    def _summary(self, wanted: list[PlannedRun], statuses: dict[str, str], counts: Counter[str]) -> str:
        failed = sum(counts[status] for status in FAILURES)
        left = [run for run in wanted if statuses[run.key] not in (FINISHED, *FAILURES)]
        parts = [f"{counts[FINISHED]} of {len(wanted)} done", f"{counts[RUNNING]} running", f"{failed} failed"]
        seconds = self._seconds_left(left, max(1, counts[RUNNING]))
        return ", ".join(parts if seconds is None else [*parts, f"{_duration(seconds)} left"])

    def _seconds_left(self, left: list[PlannedRun], workers: int) -> float | None:
        """By the mean of like runs: same method and task, else same task, else any; None where nothing is known."""
        took: dict[tuple[str, ...], list[float]] = {}
        for run in self._runs:
            record = self._folder.record(run)
            if record is not None and (seconds := _seconds(record)) is not None:
                for kind in ((run.method, run.task), (run.task,), ()):
                    took.setdefault(kind, []).append(seconds)
        if not took:
            return None
        kinds = (next(kind for kind in ((run.method, run.task), (run.task,), ()) if kind in took) for run in left)
        return sum(statistics.fmean(took[kind]) for kind in kinds) / workers

    def _table(self, wanted: list[PlannedRun], statuses: dict[str, str], counts: Counter[str]) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        tasks = list(dict.fromkeys(run.task for run in wanted))
        table.add_column("method")
        for task in tasks:
            # As text: brackets in names are no markup.
            table.add_column(Text(task), justify="center")
        for method in dict.fromkeys(run.method for run in wanted):
            cells = []
            for task in tasks:
                mine = [statuses[run.key] for run in wanted if (run.method, run.task) == (method, task)]
                cells.append("".join(_MARKS.get(status, "✗") for status in mine))
            table.add_row(Text(method), *cells)
        # Above the table and not in it, because the table may be narrower.
        return Group(Text(self._summary(wanted, statuses, counts)), table, "✓ finished  ▶ running  · waiting  ✗ failed")


def _expected(runs: list[PlannedRun]) -> list[PlannedRun]:
    """The runs that are to be made, with the first settings of a method in place of those that will be chosen."""
    first: dict[tuple[str, str], str] = {}
    for run in runs:
        if run.chosen is None:
            first.setdefault((run.method, run.task), run.candidate)
    return [
        run
        for run in runs
        if run.is_trial or run.chosen or (run.chosen is None and run.candidate == first[run.method, run.task])
    ]


def _short(key: str) -> str:
    return "rate" if key == "train.learning_rate" else key.rpartition(".")[2]


def _seconds(record: Record) -> float | None:
    """What a run took: cached features that another run had computed cost it nothing but their reading."""
    if record.time is None:
        return None
    reused = record.frozen is not None and record.frozen.reused
    features = (0.0 if reused else record.time.features_seconds or 0.0) + (record.time.cache_seconds or 0.0)
    return record.time.train_seconds + record.time.eval_seconds + features


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if seconds < 60:
        return "under a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


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


# A cost that is lower by less is not called cheaper.
_CHEAPER = 0.9

PICTURE = "choice.png"


@dataclass(frozen=True)
class Answer:
    """What a choice came to.

    Attributes:
        recommended: The method's name.
        runs: Its finished runs with their records, all rows and several seeds where time allowed.
        on_all_rows: Whether it did.
        score: The mean score on the reported rows, in the unit of the metric.
        interval: What as many other rows would give, in 95 of 100 cases; None where that is not known.
        comparisons: Of all other finalists with it.
        cheaper: Of those that cannot be told apart from it, what they cost less, by name.
    """

    recommended: str
    runs: list[tuple[PlannedRun, Record]]
    on_all_rows: bool
    score: float
    interval: tuple[float, float] | None
    comparisons: dict[str, Comparison]
    cheaper: dict[str, list[str]]


def answer(choice: Choice) -> Answer:
    """Finds the recommended settings: the best on the selection rows; the reported rows only say how good they are."""
    found = [(run, record) for run in choice.study.runs if (record := choice.record(run)) is not None]
    finals = [(run, record) for run, record in found if not run.is_trial]
    by_settings: dict[tuple[str, str], list[tuple[PlannedRun, Record]]] = {}
    longest = max(run.share for run, _ in found)
    for run, record in finals or [one for one in found if one[0].share == longest]:
        if run.method != REFERENCE:
            by_settings.setdefault((run.method, run.candidate), []).append((run, record))
    if not by_settings:
        by_settings[REFERENCE, ""] = finals
    most = max(map(len, by_settings.values()))
    best = max(
        (runs for runs in by_settings.values() if len(runs) == most),
        key=lambda runs: statistics.fmean(selection_score(record) or -math.inf for _, record in runs),
    )
    name = best[0][0].method

    def read(record: Record) -> Any:
        run = next(run for run, one in found if one.run_key == record.run_key)
        return choice.folder.run_folder(run).read_predictions(record, "report")

    score, interval = _score(best, read)
    comparisons: dict[str, Comparison] = {}
    if finals:
        differences = find_differences(study_results(choice.study, [record for _, record in finals]), read)
        comparisons = {one.method: one for one in compare(differences, name) if one.difference is not None}
    alike = [one for one in comparisons if comparisons[one].verdict == "no difference shown"]
    first = {run.method: record for run, record in reversed(finals)}
    cheaper = {one: words for one in alike if (words := _savings(first[one], first[name]))}
    return Answer(name, best, bool(finals), score, interval, comparisons, cheaper)


def _score(
    runs: list[tuple[PlannedRun, Record]], read: Callable[[Record], Any]
) -> tuple[float, tuple[float, float] | None]:
    """The mean score on the reported rows, and the interval for as many other rows."""
    records = [record for _, record in runs]
    protocol = records[0].protocol
    assert protocol
    mean = statistics.fmean(record.selected_scores[protocol.metric] for record in records)
    rows = []
    for record in records:
        predictions = read(record)
        if predictions is None:
            return mean, None
        values = pseudo_values(protocol.metric, predictions.labels, predictions.predicted)
        if values is None:
            return mean, None
        rows.append(values)
    estimate = over_rows(rows[0], mean) if len(rows) == 1 else over_seeds_and_rows(np.stack(rows), mean)
    # Other rows have chance errors of their own, as large as those of these rows.
    other = (
        {"error": math.sqrt(2) * estimate.error}
        if len(rows) == 1
        else {"normal_error": math.sqrt(2) * estimate.normal_error}
    )
    low, high = replace(estimate, **other).interval()
    return mean, ((max(low, 0.0), min(high, 1.0)) if protocol.higher_is_better else (max(low, 0.0), high))


def _savings(record: Record, than: Record) -> list[str]:
    """What a run costs less than another, in words."""
    pairs = {
        "trained parameters": [one.params.trainable if one.params else None for one in (record, than)],
        "memory": [one.memory.estimate.peak_bytes if one.memory and one.memory.estimate else None
                   for one in (record, than)],
        "latency": [one.inference.latency_ms_median if one.inference else None for one in (record, than)],
    }  # fmt: skip
    known = {what: pair[0] / pair[1] for what, pair in pairs.items() if pair[0] is not None and pair[1]}
    return [f"{100 * ratio:.0f} % of its {what}" for what, ratio in known.items() if ratio < _CHEAPER]


def print_choice(choice: Choice, seconds: float, write: Callable[[str], None], *, as_json: bool) -> None:
    """Prints the answer of a choice, then the table of those that were trained on all rows, and draws them.

    Args:
        choice: The choice.
        seconds: What it took, with all commands before.
        write: Prints text.
        as_json: Whether to print a JSON object instead.
    """
    found = answer(choice)
    run, record = found.runs[0]
    assert record.protocol
    metric, percent = record.protocol.metric, record.protocol.higher_is_better
    scale, unit = (100, " %") if percent else (1, "")
    trained = [one for one in choice.study.runs if choice.record(one) is not None]
    command = shlex.join(["petl-bench", "run", *run.overrides])
    picture = choice.folder.path / PICTURE
    against = found.comparisons.get(REFERENCE) or found.comparisons.get("lora")
    if as_json:
        differences = {
            name: {"difference": one.difference.mean, "interval": one.difference.interval, "p_corrected": one.p,
                   "verdict": one.verdict, "cheaper": found.cheaper.get(name, [])}
            for name, one in found.comparisons.items() if one.difference is not None
        }  # fmt: skip
        content = {
            "method": "lora" if found.recommended == REFERENCE else found.recommended,
            "settings": run.tried, "command": command, "on_all_rows": found.on_all_rows, "metric": metric,
            "score": found.score, "interval_of_other_rows": found.interval, "seeds": [one.seed for one, _ in found.runs],
            "report_rows": record.protocol.num_eval_examples, "compared_with_it": differences,
            "left_out": choice.state.left_out, "trainings": len(trained), "seconds": seconds,
            "folder": str(choice.folder.path), "run": str(choice.folder.path / run.folder),
        }  # fmt: skip
        write(json.dumps(content, indent=2))
        write = _log.debug
    else:
        settings = ", ".join(f"{_short(key)} {value}" for key, value in run.tried.items())
        write(f"recommended: {found.recommended} ({settings})\n  {command}")
        interval = ""
        if found.interval is not None:
            low, high = (f"{scale * end:.1f}" for end in found.interval)
            interval = f"; as many other rows would give {low} to {high} (95 %)"
        seeds = "one seed" if len(found.runs) == 1 else f"mean of {len(found.runs)} seeds"
        rows = f"{record.protocol.num_eval_examples:,} rows that chose nothing"
        write(f"score: {metric} {scale * found.score:.1f}{unit} on {rows}, {seeds}{interval}")
        if not found.on_all_rows:
            write(f"  of a training on {100 * run.share:.0f} % of the whole: the time did not suffice for all rows")
        for name, words in found.cheaper.items():
            one = found.comparisons[name]
            write(f"not told apart from it, and cheaper: {name} ({_points(one, scale)}; {', '.join(words)})")
        if found.comparisons and not found.cheaper:
            write("none of the others that were trained on all rows is cheaper and as good, as far as these rows show")
        if against is not None:
            gain = replace(against, difference=against.difference.turned() if against.difference else None)
            shown = (
                "gains" if against.verdict == "worse" else "no gain shown" if against.verdict != "better" else "loses"
            )
            write(f"against LoRA at its default: {shown}, {_points(gain, scale)}")
        minutes = f"{seconds / 60:.1f} min"
        write(f"the search: {len(trained)} trainings of {len({one.method for one in trained} - {REFERENCE})} methods, "
              f"{minutes}")  # fmt: skip
        if choice.state.left_out:
            write(
                "left out: " + "; ".join(f"{name} ({why.rstrip('.')})" for name, why in choice.state.left_out.items())
            )
        write(f"trained: {choice.folder.path / run.folder}\n")
    if found.on_all_rows:
        write_report([str(choice.folder.path)], "json" if as_json else "table", str(picture), write)


def _points(one: Comparison, scale: int) -> str:
    assert one.difference is not None
    text = f"{scale * one.difference.mean:+.1f} points"
    if one.difference.interval is None:
        return text
    low, high = (f"{scale * end:+.1f}" for end in one.difference.interval)
    return f"{text}, {low} to {high}"
