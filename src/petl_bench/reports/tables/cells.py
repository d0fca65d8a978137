"""The text of a table's cells."""

from __future__ import annotations

from petl_bench.records.schema import Params
from petl_bench.records.study_file import PlannedCosts
from petl_bench.reports.statistics.sheets import Cell, Sheet
from petl_bench.reports.statistics.standing import central
from petl_bench.reports.tables.columns import MISSING


def score_text(sheet: Sheet, method: str, task: str, statistic: str) -> str:
    """One score, in percent unless it is an error; how runs ended where none finished."""
    cell, score = sheet.cells[method, task], sheet.score(method, task)
    if score is None:
        return ", ".join(cell.unfinished) or MISSING
    scale, digits = (100, 1) if sheet.in_percent(task) else (1, 4)

    def show(value: float) -> str:
        return f"{scale * value:.{digits}f}"

    is_partial = cell.planned is not None and score.n < cell.planned
    count = f"{score.n}/{cell.planned}" if is_partial else str(score.n)
    text = show(central(score, statistic))
    if statistic == "median":
        return f"{text} ({count})" + (f" [{show(score.lowest)}, {show(score.highest)}]" if score.n > 1 else "")
    spread = f" ± {show(score.sd)}" if score.sd is not None else ""
    return f"{text}{spread}" + (f" ({count})" if is_partial else "")


def counts(cells: list[Cell]) -> str:
    """How many seeds finished, over the tasks; with a study, of how many."""
    found = [len(cell.group.records) if cell.group else 0 for cell in cells if cell.group or cell.planned]
    if not found:
        return MISSING
    text = _span(found)
    planned = [cell.planned for cell in cells if cell.planned]
    complete = all(cell.group and len(cell.group.records) >= cell.planned for cell in cells if cell.planned)
    return text if complete else f"{text}/{_span(planned)}"


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"


def parameters(cells: list[Cell]) -> list[str]:
    """Parameters of the method and of the head, and their share: of the task with the most, by plan where none ran."""
    params = [cell.group.first.params for cell in cells if cell.group and cell.group.first.params]
    if params:
        most = max(params, key=lambda one: one.trainable)
        return [f"{most.trainable_method:,}", f"{most.trainable_head:,}", _share(most)]
    planned = [cell.costs for cell in cells if cell.costs and cell.costs.trainable_method is not None]
    if not planned:
        return [MISSING] * 3
    costs = max(planned, key=lambda one: (one.trainable_method or 0) + (one.trainable_head or 0))
    return [
        f"{costs.trainable_method:,}",
        MISSING if costs.trainable_head is None else f"{costs.trainable_head:,}",
        _share(costs),
    ]


def _share(counted: Params | PlannedCosts) -> str:
    share = counted.trainable_share_of_backbone_percent
    return MISSING if share is None else f"{share:.3f}"


def total(cells: list[Cell]) -> str:
    """Seconds of training, summed over the tasks."""
    found = [cell.group.statistic("time", "train_seconds") for cell in cells if cell.group]
    known = [statistic.mean for statistic in found if statistic is not None]
    return f"{sum(known):,.0f}" if known else MISSING
