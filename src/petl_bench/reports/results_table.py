"""The results table: methods, tasks, and a cell for every (method, task) pair, whether it was run or not."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from petl_bench.records.run_key import backbone_name
from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedCosts, PlannedRun, StudyFile
from petl_bench.reports.fields import Field, is_error
from petl_bench.reports.groups import Group, is_comparable
from petl_bench.reports.machines import newest_last
from petl_bench.reports.significance import Statistic


class StudyRecords:
    """Looks records up by (method, task), through the run keys that the study planned.

    Runs with learning rates that were tried and not chosen never count. As long as the rate of a cell has not been
    chosen, none of its runs count.
    """

    def __init__(self, study: StudyFile, records: Iterable[Record]) -> None:
        self.study = study
        self._records: dict[str, Record] = {}
        self._finished: dict[str, list[Record]] = {}
        for record in newest_last(records):
            # A folder may hold a failed attempt next to the repeated run.
            if record.run_key not in self._records or is_comparable(record):
                self._records[record.run_key] = record
            if is_comparable(record):
                self._finished.setdefault(record.run_key, []).append(record)
        self._planned: dict[tuple[str, str], list[PlannedRun]] = {}
        for run in sorted(study.runs, key=lambda run: run.seed):
            if run.chosen is not False:
                self._planned.setdefault((run.method, run.task), []).append(run)
        self._costs = {(cost.method, cost.task): cost for cost in study.costs}

    def seeds(self, method: str, task: str) -> list[int]:
        """The planned seeds in ascending order."""
        return sorted({run.seed for run in self._runs(method, task)})

    def rate_open(self, method: str, task: str) -> bool:
        """Whether several learning rates per seed are planned and none has been chosen yet."""
        return len(self._runs(method, task)) > len(self.seeds(method, task))

    def ended(self, method: str, task: str) -> list[Record]:
        """All records of this cell, whatever their status, in the order of their seeds."""
        return [self._records[run.key] for run in self._runs(method, task) if run.key in self._records]

    def by_seed(self, method: str, task: str) -> dict[int, Record]:
        """The finished records of this cell, in the order of their seeds."""
        if self.rate_open(method, task):
            return {}
        records = {run.seed: self._records.get(run.key) for run in self._runs(method, task)}
        return {seed: record for seed, record in records.items() if record is not None and is_comparable(record)}

    def replaced(self, method: str, task: str) -> tuple[Record, ...]:
        """The finished records of this cell that `by_seed` replaces by newer records of the same run."""
        keys = [record.run_key for record in self.by_seed(method, task).values()]
        return tuple(record for key in keys for record in self._finished[key][:-1])

    def num_missing(self, method: str, task: str) -> int:
        """The number of planned runs that have not ended; failed runs have ended."""
        runs = self._runs(method, task)
        if self.rate_open(method, task):
            return len(runs)
        return sum(not self._ended(run) for run in runs) if runs else 1

    def num_failed(self, method: str, task: str) -> int:
        """The number of planned runs that ended without finishing."""
        runs = self._runs(method, task)
        return sum(self._ended(run) and not is_comparable(self._records[run.key]) for run in runs)

    def _runs(self, method: str, task: str) -> list[PlannedRun]:
        return self._planned.get((method, task), [])

    def _ended(self, run: PlannedRun) -> bool:
        """Whether a run has ended; an interrupted run will be resumed."""
        return run.key in self._records and self._records[run.key].status != "interrupted"

    def primary_metric(self, task: str) -> str | None:
        """The task's primary metric according to the first of the study's records; None if there is none."""
        for method in self.study.methods:
            for record in self.by_seed(method, task).values():
                assert record.protocol
                return record.protocol.metric
        return None

    def costs(self, method: str, task: str) -> PlannedCosts | None:
        """The planned costs of this cell."""
        return self._costs.get((method, task))


def score_of(record: Record, metric: str) -> float | None:
    """The score of the selected weights; for a metric `a+b` the mean of both, None if one is missing."""
    scores = [record.selected_scores.get(name) for name in metric.split("+")]
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if len(known) == len(scores) else None


def in_points(metric: str, value: float) -> float:
    """Converts a score to the unit that papers print: fractions and correlations times 100, errors as they are."""
    return value if is_error(metric) else 100 * value


RATE_OPEN = "rate open"
# Of two rates, the chosen one is always at an end.
_LEAST_RATES = 3


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Attributes:
        group: The finished runs; None if there are none.
        planned: The number of seeds that a study plans; None without a study.
        unfinished: The statuses of the study's runs that did not finish, or why none is reported.
        costs: The costs that the study planned.
        rate_end: "highest" or "lowest" if the chosen learning rate is at this end of a list of three or more.
    """

    group: Group | None = None
    planned: int | None = None
    unfinished: tuple[str, ...] = ()
    costs: PlannedCosts | None = None
    rate_end: str | None = None

    def measured(self, field: Field) -> float | None:
        """The mean of a number over the finished runs; None if none measured it, or several machines did."""
        statistic = self.group.statistic(field) if self.group else None
        return statistic.mean if statistic else None


@dataclass(frozen=True)
class ResultsTable:
    """The methods and tasks of one table; `cells` has every pair of them.

    Attributes:
        title: The backbone, or the study with its backbones.
        study: The study's name; None without a study.
        remarks: How a study differs from the papers that it is compared with.
    """

    title: str
    methods: list[str]
    tasks: list[str]
    cells: dict[tuple[str, str], Cell]
    study: str | None = None
    remarks: list[str] = field(default_factory=list)

    def groups(self) -> list[Group]:
        """All groups with finished runs, method by method."""
        groups = (self.cells[method, task].group for method in self.methods for task in self.tasks)
        return [group for group in groups if group is not None]

    def groups_of(self, method: str) -> dict[str, Group]:
        """A method's groups by task."""
        groups = {task: self.cells[method, task].group for task in self.tasks}
        return {task: group for task, group in groups.items() if group is not None}

    def metric(self, task: str) -> str | None:
        """The primary metric of a task's column; None if no run has finished."""
        first = self._firsts.get(task)
        return first.metric if first else None

    def in_percent(self, task: str) -> bool:
        """Whether a task's column is shown in percent; errors are not."""
        first = self._firsts.get(task)
        return first is None or first.in_percent

    @property
    def all_in_percent(self) -> bool:
        """Whether the scores of all tasks have the same unit, so that they can be averaged."""
        return all(map(self.in_percent, self.tasks))

    def score(self, method: str, task: str) -> Statistic | None:
        """The score of one cell in the metric of its column."""
        group = self.cells[method, task].group
        return group.score(self.metric(task)) if group else None

    def scores(self, method: str) -> dict[tuple[str, int], float]:
        """A method's scores by (task, seed). Errors are negated, so that higher is always better."""
        return {
            (task, seed): score if self.in_percent(task) else -score
            for task, group in self.groups_of(method).items()
            for seed, score in group.by_seed(self.metric(task)).items()
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores of the baselines in the metrics of the columns, by baseline and task.

        Tasks whose runs were trained or scored on different rows are left out, because they have several baselines.
        """
        by_name: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            groups = [self.cells[method, task].group for method in self.methods]
            recorded = [record.baselines for group in groups if group for record in group.records if record.baselines]
            for name in dict.fromkeys(name for baselines in recorded for name in baselines):
                scores = {baselines.get(name, {}).get(self.metric(task) or "") for baselines in recorded}
                if len(scores) == 1 and (score := scores.pop()) is not None:
                    by_name.setdefault(name, {})[task] = score
        return by_name

    def missing(self) -> list[str]:
        """Describes each cell of a study in which seeds are missing."""
        counts = {pair: len(cell.group.seeds) if cell.group else 0 for pair, cell in self.cells.items()}
        return [
            f"{method} on {task} ({counts[method, task]} of {cell.planned} seeds)"
            for (method, task), cell in self.cells.items()
            if cell.planned is not None and counts[method, task] < cell.planned
        ]

    def incomplete_runs(self) -> set[str]:
        """The keys of the runs on tasks that not every method with runs has finished, with all planned seeds."""
        methods = [method for method in self.methods if self.groups_of(method)]
        run_keys = set[str]()
        for task in self.tasks:
            cells = [self.cells[method, task] for method in methods]
            groups = [cell.group for cell in cells if cell.group is not None]
            planned = max((cell.planned or 0 for cell in cells), default=0)
            if len(groups) < len(cells) or any(len(group.seeds) < planned for group in groups):
                run_keys.update(record.run_key for group in groups for record in group.records)
        return run_keys

    @cached_property
    def _firsts(self) -> dict[str, Group]:
        return {group.task: group for group in reversed(self.groups())}


def backbone_results(groups: list[Group]) -> list[ResultsTable]:
    """Makes one table per backbone for runs of no study, methods with the fewest trained parameters first."""
    all_results = []
    for backbone in dict.fromkeys(group.backbone for group in groups):
        of_backbone = [group for group in groups if group.backbone == backbone]
        finished = {(group.label, group.task): Cell(group) for group in of_backbone}
        sizes: dict[str, int] = {}
        for group in of_backbone:
            assert group.first.params
            sizes.setdefault(group.label, group.first.params.trainable)
        methods = sorted(sizes, key=lambda label: (sizes[label], label))
        tasks = list(dict.fromkeys(group.task for group in of_backbone))
        cells = {(method, task): finished.get((method, task), Cell()) for method in methods for task in tasks}
        all_results.append(ResultsTable(backbone, methods, tasks, cells))
    return all_results


def study_results(study: StudyFile, records: Iterable[Record]) -> ResultsTable:
    """Makes the table of a study: its methods and tasks in its order, by its names.

    Records that are not the study's, or whose learning rate was not chosen, are left out.
    """
    ours = StudyRecords(study, records)
    cells = {(method, task): _cell(method, task, ours) for method in study.methods for task in study.tasks}
    backbones = dict.fromkeys(cell.group.backbone for cell in cells.values() if cell.group)
    title = f"{study.name} ({', '.join(backbones)})" if backbones else study.name
    return ResultsTable(title, study.methods, study.tasks, cells, study.name, study.deviations)


def _cell(method: str, task: str, ours: StudyRecords) -> Cell:
    seeds, costs = ours.seeds(method, task), ours.costs(method, task)
    if ours.rate_open(method, task):
        return Cell(planned=len(seeds), unfinished=(RATE_OPEN,), costs=costs)
    finished = list(ours.by_seed(method, task).values())
    ends = dict.fromkeys(record.status for record in ours.ended(method, task) if record.status != "finished")
    group = None
    if finished:
        backbone = backbone_name(finished[0].config["backbone"])
        group = Group(task, backbone, method, finished, ours.replaced(method, task))
    return Cell(group, len(seeds), tuple(ends), costs, _rate_end(method, task, ours.study))


def _rate_end(method: str, task: str, study: StudyFile) -> str | None:
    """Which end of the study's list of rates the chosen one is; None for a search, whose range is wide."""
    runs = [run for run in study.runs if (run.method, run.task) == (method, task)]
    rates = {run.learning_rate for run in runs if run.learning_rate is not None}
    chosen = {run.learning_rate for run in runs if run.chosen}
    if study.search is not None or len(rates) < _LEAST_RATES or len(chosen) != 1:
        return None
    return "highest" if max(rates) in chosen else "lowest" if min(rates) in chosen else None


def reported_records(study: StudyFile, records: Iterable[Record]) -> list[Record]:
    """Selects the records of a study, without those of learning rates that were not chosen."""
    reported = {run.key for run in study.runs if run.chosen is not False}
    return [record for record in records if record.run_key in reported]
