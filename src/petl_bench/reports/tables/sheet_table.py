"""The table of one sheet: methods down, scores and costs across."""

from __future__ import annotations

from petl_bench.reports.statistics.paired import SIGNIFICANCE
from petl_bench.reports.statistics.sheets import RATE_OPEN, Sheet
from petl_bench.reports.statistics.standing import ColumnStanding, Standing
from petl_bench.reports.tables.cells import counts, parameters, score_text, total
from petl_bench.reports.tables.columns import MISSING, SPEED, Column, measured_columns
from petl_bench.reports.tables.table import ReportTable

_TITLES = {"mean": "mean ± sd over seeds", "median": "median (n) [lowest, highest] over seeds"}


def sheet_table(sheet: Sheet, stand: Standing, statistic: str = "mean") -> ReportTable:
    """The table of one sheet. Scores are in percent; costs are those of the costliest task.

    Args:
        sheet: The methods and tasks.
        stand: How the methods stand by the same statistic.
        statistic: `mean` or `median`.
    """
    measured = [SPEED, *measured_columns(sheet)]
    scored: dict[str, ColumnStanding] = {_heading(sheet, task): stand.tasks[task] for task in sheet.tasks}
    header = ["method", "seeds", "method params", "head params", "% of backbone", *scored]
    if stand.averages:
        header.append("avg")
        scored["avg"] = stand.average
    if ranked := len(stand.ranks) > 1 and stand.blocks > 1:
        header.append("avg rank")
    header += ["train s", *(column.name for column in measured)]
    rows = []
    for method in sheet.methods:
        cells = [sheet.cells[method, task] for task in sheet.tasks]
        row = [method, counts(cells), *parameters(cells)]
        row += [score_text(sheet, method, task, statistic) for task in sheet.tasks]
        row += [f"{100 * stand.averages[method]:.1f}" if method in stand.averages else MISSING] * bool(stand.averages)
        row += [f"{stand.ranks[method]:.2f}" if method in stand.ranks else MISSING] * ranked
        rows.append([*row, total(cells), *(column.cell(cells) for column in measured)])
    bold = frozenset(
        (number, header.index(name))
        for name, column in scored.items()
        for number, method in enumerate(sheet.methods)
        if method in column.bold
    )
    notes = [*_protocols(sheet), *_bold_notes(scored, statistic), *_notes(sheet, stand, measured, header)]
    return ReportTable(f"{sheet.title}: {_TITLES[statistic]}", header, rows, notes, bold)


def _heading(sheet: Sheet, task: str) -> str:
    metric = sheet.metric(task)
    short = {"accuracy": "acc", "matthews_correlation": "mcc"}
    return task if metric is None else f"{task} {short.get(metric, metric)}"


def _protocols(sheet: Sheet) -> list[str]:
    lines = []
    for task in sheet.tasks:
        for group in sheet.groups():
            protocol = group.first.protocol
            if group.task != task or protocol is None:
                continue
            lines.append(
                f"{task}: {protocol.num_train_examples:,} training rows, scored on "
                f"{protocol.num_eval_examples:,} rows of {protocol.report_split}, {protocol.selection} checkpoint by "
                f"{protocol.metric} on {protocol.selection_split}"
            )
    return list(dict.fromkeys(lines))


def _bold_notes(scored: dict[str, ColumnStanding], statistic: str) -> list[str]:
    """What bold means, where anything is bold."""
    notes = []
    if any(column.bold and not column.too_few for column in scored.values()):
        notes.append(
            f"bold: the best {statistic} of a column and all that is not distinguishable from it (paired sign-flip "
            f"test over seeds, of avg over (task, seed), p >= {SIGNIFICANCE} after Holm over the methods of the column)"
        )
    few = {name: column for name, column in scored.items() if column.bold and column.too_few}
    sizes: dict[str, list[str]] = {}
    for name, column in few.items():
        ends = sorted({column.pairs[0], column.pairs[-1]}) if column.pairs else [0]
        sizes.setdefault("-".join(map(str, ends)), []).append(name)
    for size, names in sizes.items():
        where = "" if len(names) == len(scored) else f"{', '.join(names)}: "
        notes.append(
            f"{where}n = {size}: too few seeds to tell methods apart; bold is the best {statistic} alone, which may be "
            "chance"
        )
    return notes


def _notes(sheet: Sheet, stand: Standing, measured: list[Column], header: list[str]) -> list[str]:
    notes = ["scores in percent, errors (lower is better) as they are"]
    if "avg" in header:
        notes.append("avg: mean over the tasks, in percent, of methods that have all of them")
    if "avg rank" in header:
        notes.append(
            f"avg rank: 1 is best; mean over the {stand.blocks} (task, seed) that every method with a score finished"
        )
    notes += [
        "% of backbone: trained parameters, head included, over the encoder's (head excluded)",
        "train s: evaluation excluded, summed over the tasks that the method has run",
        *(f"{column.name}: {column.note}" for column in measured),
    ]
    if len(sheet.tasks) > 1:
        notes.append("parameters, memory, operations and speed: of the costliest task")
    notes += _plan_notes(sheet)
    cells = sheet.cells.values()
    if any(cell.planned is not None and cell.group and len(cell.group.seeds) < cell.planned for cell in cells):
        notes.append("(2/3): 2 of 3 seeds finished")
    if any(RATE_OPEN in cell.unfinished for cell in cells):
        notes.append(f"{RATE_OPEN}: several learning rates are being tried, none has been taken")
    return notes + [f"deviation: {remark}" for remark in sheet.remarks]


def _plan_notes(sheet: Sheet) -> list[str]:
    """Of methods that have not run: whose costs are the plan's, and what the plan said of the others."""
    counted, notes = [], []
    for method in sheet.methods:
        cells = [sheet.cells[method, task] for task in sheet.tasks]
        costs = [cell.costs for cell in cells if cell.costs]
        if any(cell.group for cell in cells):
            continue
        if any(cost.trainable_method is not None for cost in costs):
            counted.append(method)
        notes += [f"{method}: {note}" for note in dict.fromkeys(cost.note for cost in costs if cost.note)]
    return [f"counted by plan, not run: parameters and ledger of {', '.join(counted)}", *notes] if counted else notes
