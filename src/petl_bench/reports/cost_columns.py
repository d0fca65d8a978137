"""Costs in reports: columns of the results table if one machine measured them, else a table with a line per machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from petl_bench.records.schema import CACHE_PLACES, Record
from petl_bench.records.study_file import StudyFile
from petl_bench.reports.fields import FIELDS, MISSING, Field
from petl_bench.reports.groups import Group
from petl_bench.reports.machines import Machine, MeasuredCosts, machines_of
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import Cell, ResultsTable


def is_on_one_machine(groups: Sequence[Group]) -> bool:
    """Whether one machine measured the costs of all groups, and each group has them in one cache mode."""
    return len(machines_of(chain.from_iterable(group.measured_costs for group in groups))) <= 1 and all(
        len(group.measured_costs) == 1 for group in groups
    )


def cost_columns(results: ResultsTable) -> list[Field]:
    """The cost columns of the table of scores, without those that several machines measured."""
    known = _known_costs(results)
    return known if is_on_one_machine(results.groups()) else [field for field in known if not field.depends_on_machine]


def _known_costs(results: ResultsTable) -> list[Field]:
    """The costs that tables show, without those that no run of this table has.

    The memory of the whole process is shown only if no better memory figure is known.
    """
    cells = list(results.cells.values())
    costs = [field for field in FIELDS.values() if field.table and field.kind != "parameters"]
    known = [field for field in costs if field.always or any(_is_known(field, cell) for cell in cells)]
    process = FIELDS["process_peak_rss_bytes"]
    if any(field.depends_on_batch and field != process for field in known):
        known = [field for field in known if field != process]
    if not any(field.depends_on_batch for field in known):
        known = [field for field in known if field != FIELDS["batch_size"]]
    return known


def _is_known(field: Field, cell: Cell) -> bool:
    return field.planned_value(cell.costs) is not None or (cell.group is not None and cell.group.has(field))


def cost_cell(column: Field, cells: list[Cell]) -> str:
    """One cost of a method over its tasks; the planned cost if none of its runs has finished.

    Args:
        column: The cost.
        cells: The method's cells, one per task.

    Returns:
        The highest of the tasks' means (the lowest for a speed), their sum, or each distinct one (`Field.over_tasks`).
    """
    if any(cell.group for cell in cells):
        return _over_tasks(column, (cell.measured(column) for cell in cells))
    return _over_tasks(column, (column.planned_value(cell.costs) for cell in cells))


def _over_tasks(column: Field, values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    if column.over_tasks == "sum":
        return column.text(sum(known))
    if column.over_tasks == "each":
        return "/".join(map(column.text, sorted(set(known))))
    return column.text(min(known) if column.higher_is_better else max(known))


def cost_definitions(columns: Iterable[Field]) -> list[str]:
    """The notes that define columns."""
    summed = ", summed over the tasks that the method has run"
    return [f"{column.name}: {column.definition}{summed if column.over_tasks == 'sum' else ''}" for column in columns]


def machine_notes(results: ResultsTable) -> list[str]:
    """Names the machine of the costs in the table of scores, and where methods cached the features of frozen layers."""
    groups = results.groups()
    if not groups:
        return []
    if not is_on_one_machine(groups):
        return ["times, memory of devices and processes, speed: of several machines, in the table of costs"]
    (machine,) = machines_of(chain.from_iterable(group.measured_costs for group in groups))
    notes = [f"times, memory of devices and processes, speed: measured on {machine.name}"]
    for cache, meaning in CACHE_PLACES.items():
        methods = dict.fromkeys(group.label for group in groups if group.measured_costs[0].cache == cache)
        if methods:
            notes.append(f"features of frozen layers {meaning}: {', '.join(methods)}")
    return notes


def costs_by_machine(results: ResultsTable) -> ReportTable | None:
    """Makes the table of costs that several machines measured, with one line per method, machine and cache mode.

    Returns:
        None if a single machine measured the costs; the table of scores then shows them.
    """
    groups = results.groups()
    if is_on_one_machine(groups):
        return None
    columns = [field for field in _known_costs(results) if field.depends_on_machine or field == FIELDS["batch_size"]]
    with_tasks = len(results.tasks) > 1
    with_features = any(costs.cache for group in groups for costs in group.measured_costs)
    rows = []
    for method in results.methods:
        for (machine, cache), by_task in _by_machine(results.groups_of(method)).items():
            row = [method, machine.name]
            row += [CACHE_PLACES.get(cache or "", MISSING)] * with_features
            row += [", ".join(by_task)] * with_tasks
            values = [_over_tasks(column, (costs.mean(column) for costs in by_task.values())) for column in columns]
            rows.append([*row, _seeds(by_task.values()), *values])
    text_columns = ["machine", *["features"] * with_features, *["tasks"] * with_tasks]
    header = ["method", *text_columns, "seeds", *(column.name for column in columns)]
    notes = [
        "averaged over seeds with the same device, processor, threads, torch, precision and place of features only",
        *["features: where those of the frozen layers were kept"] * with_features,
        *cost_definitions(columns),
    ]
    return ReportTable(f"{results.title}: costs by machine", header, rows, notes, prose=tuple(text_columns))


def _by_machine(groups: dict[str, Group]) -> dict[tuple[Machine, str | None], dict[str, MeasuredCosts]]:
    """A method's costs by machine and cache mode, then by task."""
    by_place: dict[tuple[Machine, str | None], dict[str, MeasuredCosts]] = {}
    for task, group in groups.items():
        for costs in group.measured_costs:
            by_place.setdefault((costs.machine, costs.cache), {})[task] = costs
    return by_place


def _seeds(costs: Iterable[MeasuredCosts]) -> str:
    numbers = sorted({len(measured.records) for measured in costs})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def search_costs(study: StudyFile, records: Iterable[Record]) -> list[dict[str, Any]]:
    """The cost of a search's trials by method: their number, updates and seconds, and the settings that were chosen.

    Args:
        study: The study; the result is empty if it has no search or only a grid of rates.
        records: All records in its folder.
    """
    if study.search is None:
        return []
    by_key = {record.run_key: record for record in records}
    costs = []
    # For a choice of methods, this includes those that were eliminated along the way.
    for method in dict.fromkeys([*study.methods, *(run.method for run in study.runs)]):
        runs = [run for run in study.runs if run.method == method]
        trials = [(run, by_key.get(run.key)) for run in runs if run.is_trial]
        ended = [record for _, record in trials if record is not None]
        costs.append(
            {
                "study": study.name,
                "method": method,
                "trials": len({(run.task, run.candidate) for run, _ in trials}),
                "runs": len(ended),
                "failed": sum(record.status != "finished" for record in ended),
                "updates": sum(record.history[-1].step for record in ended if record.history),
                "seconds": _summed_seconds(record for record in ended if record.status == "finished"),
                "chosen": {run.task: run.tried for run in runs if run.chosen},
            }
        )
    return costs


def _summed_seconds(records: Iterable[Record]) -> float | None:
    """The seconds of all these runs; None if those of any are not known."""
    seconds = [device_seconds(record) for record in records]
    return None if None in seconds else sum(filter(None, seconds))


def device_seconds(record: Record) -> float | None:
    """Seconds that a run spent on training, scoring and, if they were not cached, features of frozen layers.

    Returns:
        The seconds; None if the record has no times.
    """
    if record.time is None:
        return None
    is_reused = record.frozen is not None and record.frozen.reused
    features = 0.0 if is_reused else record.time.features_seconds or 0.0
    return record.time.train_seconds + record.time.eval_seconds + features


def search_table(study: StudyFile, records: Iterable[Record]) -> ReportTable | None:
    """Makes the table of the cost of a search and the settings that it chose; None for a study without a search."""
    costs = search_costs(study, records)
    if not costs or study.search is None:
        return None
    rows = []
    for cost in costs:
        settings = [cost["chosen"].get(task) for task in study.tasks]
        chosen = [MISSING if tried is None else _settings_text(tried) for tried in settings]
        row = [cost["method"], str(cost["trials"]), str(cost["runs"]), str(cost["failed"]), f"{cost['updates']:,}"]
        minutes = MISSING if cost["seconds"] is None else f"{cost['seconds'] / 60:.1f}"
        rows.append([*row, minutes, *chosen])
    search = study.search
    pruned = "" if search.pruner == "none" else f", {search.pruner}"
    prose = tuple(f"taken on {task}" for task in study.tasks)
    header = ["method", "trials", "runs", "failed", "updates", "minutes", *prose]
    how = f"{search.trials} trials of every method on every task ({search.sampler}{pruned})"
    if search.pruner == "halving":
        how = "every method at its default, all or the best with other settings; the better third of these for longer"
    notes = [
        f"{how}, with seed {search.seed}",
        "the settings that were best on the selection rows ran with the study's seeds; no trial is in the other tables",
        "minutes: training, evaluation and features of frozen layers, summed over the trials",
    ]
    return ReportTable(f"{study.name}: what the search cost", header, rows, notes, prose=prose)


def _settings_text(tried: dict[str, Any]) -> str:
    names = {key: "rate" if key == "train.learning_rate" else key.rpartition(".")[2] for key in tried}
    return ", ".join(f"{names[key]} {value}" for key, value in tried.items())
