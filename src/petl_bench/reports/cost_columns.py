"""Costs in a results table: in a column each where one machine measured them, else in a table with a line a machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from petl_bench.records.schema import CACHE_PLACES
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
    """The columns of costs in the table of scores: without those that several machines measured."""
    known = _known_costs(results)
    return known if is_on_one_machine(results.groups()) else [one for one in known if not one.depends_on_machine]


def _known_costs(results: ResultsTable) -> list[Field]:
    """The costs that tables show, without those that no run of this table has.

    The memory of the whole process is shown only if no better number of the memory is known.
    """
    cells = list(results.cells.values())
    costs = [field for field in FIELDS.values() if field.table and field.kind != "parameters"]
    known = [field for field in costs if field.always or any(_is_known(field, cell) for cell in cells)]
    process = FIELDS["process_peak_rss_bytes"]
    if any(field.kind == "memory" and field != process for field in known):
        known = [field for field in known if field != process]
    return known


def _is_known(field: Field, cell: Cell) -> bool:
    return field.planned_value(cell.costs) is not None or (cell.group is not None and cell.group.has(field))


def cost_cell(column: Field, cells: list[Cell]) -> str:
    """One cost of a method over its tasks, planned if none of its runs has finished.

    Args:
        column: The cost.
        cells: The method's cells, one per task.

    Returns:
        The highest of the tasks' means, the lowest if it is a speed, or their sum, as the column asks.
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
    return column.text(min(known) if column.higher_is_better else max(known))


def cost_definitions(columns: Iterable[Field]) -> list[str]:
    """The notes that define columns."""
    summed = ", summed over the tasks that the method has run"
    return [f"{column.name}: {column.definition}{summed if column.over_tasks == 'sum' else ''}" for column in columns]


def machine_notes(results: ResultsTable) -> list[str]:
    """Names the machine of the costs in the table of scores, and where methods kept the features of frozen layers."""
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
    """Makes the table of costs that several machines measured, a line per method, machine and cache mode.

    Returns:
        None if one machine measured them: they are in the table of scores.
    """
    groups = results.groups()
    if is_on_one_machine(groups):
        return None
    columns = [field for field in _known_costs(results) if field.depends_on_machine]
    with_tasks = len(results.tasks) > 1
    with_features = any(one.cache for group in groups for one in group.measured_costs)
    rows = []
    for method in results.methods:
        for (machine, cache), by_task in _by_machine(results.groups_of(method)).items():
            row = [method, machine.name]
            row += [CACHE_PLACES.get(cache or "", MISSING)] * with_features
            row += [", ".join(by_task)] * with_tasks
            values = [_over_tasks(column, (one.mean(column) for one in by_task.values())) for column in columns]
            rows.append([*row, _seeds(by_task.values()), *values])
    words = ["machine", *["features"] * with_features, *["tasks"] * with_tasks]
    header = ["method", *words, "seeds", *(column.name for column in columns)]
    notes = [
        "averaged over seeds with the same device, processor, threads, torch, precision and place of features only",
        *["features: where those of the frozen layers were kept"] * with_features,
        *cost_definitions(columns),
    ]
    return ReportTable(f"{results.title}: costs by machine", header, rows, notes, prose=tuple(words))


def _by_machine(groups: dict[str, Group]) -> dict[tuple[Machine, str | None], dict[str, MeasuredCosts]]:
    """A method's costs by machine and cache mode, then by task."""
    found: dict[tuple[Machine, str | None], dict[str, MeasuredCosts]] = {}
    for task, group in groups.items():
        for one in group.measured_costs:
            found.setdefault((one.machine, one.cache), {})[task] = one
    return found


def _seeds(costs: Iterable[MeasuredCosts]) -> str:
    numbers = sorted({len(one.records) for one in costs})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
