"""The tables of a report and of a plan: results, comparisons, costs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from petl_bench.records.schema import MemoryAtPeak, Params
from petl_bench.records.study_file import PlannedCosts
from petl_bench.reports.fields import MIB, MISSING, SPEED, Column, measured_columns
from petl_bench.reports.ranking import ColumnRanking, Comparison, Ranking, central, show_p
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import RATE_OPEN, Cell, ResultsTable
from petl_bench.reports.significance import SIGNIFICANCE


def score_text(results: ResultsTable, method: str, task: str, statistic: str) -> str:
    """One score, in percent unless it is an error; how runs ended where none finished."""
    cell, score = results.cells[method, task], results.score(method, task)
    if score is None:
        return ", ".join(cell.unfinished) or MISSING
    scale, digits = (100, 1) if results.in_percent(task) else (1, 4)

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


_TITLES = {"mean": "mean ± sd over seeds", "median": "median (n) [lowest, highest] over seeds"}


def scores_table(results: ResultsTable, ranking: Ranking, statistic: str = "mean") -> ReportTable:
    """The table of one sheet. Scores are in percent; costs are those of the costliest task.

    Args:
        results: The methods and tasks.
        ranking: How the methods stand by the same statistic.
        statistic: `mean` or `median`.
    """
    measured = [SPEED, *measured_columns(results)]
    scored: dict[str, ColumnRanking] = {_heading(results, task): ranking.tasks[task] for task in results.tasks}
    header = ["method", "seeds", "method params", "head params", "% of backbone", *scored]
    if ranking.averages:
        header.append("avg")
        scored["avg"] = ranking.average
    if ranked := len(ranking.ranks) > 1 and ranking.blocks > 1:
        header.append("avg rank")
    header += ["train s", *(column.name for column in measured)]
    rows = []
    for method in results.methods:
        cells = [results.cells[method, task] for task in results.tasks]
        row = [method, counts(cells), *parameters(cells)]
        row += [score_text(results, method, task, statistic) for task in results.tasks]
        row += [f"{100 * ranking.averages[method]:.1f}" if method in ranking.averages else MISSING] * bool(
            ranking.averages
        )
        row += [f"{ranking.ranks[method]:.2f}" if method in ranking.ranks else MISSING] * ranked
        rows.append([*row, total(cells), *(column.cell(cells) for column in measured)])
    bold = frozenset(
        (number, header.index(name))
        for name, column in scored.items()
        for number, method in enumerate(results.methods)
        if method in column.bold
    )
    notes = [*_protocols(results), *_bold_notes(scored, statistic), *_notes(results, ranking, measured, header)]
    return ReportTable(f"{results.title}: {_TITLES[statistic]}", header, rows, notes, bold)


def _heading(results: ResultsTable, task: str) -> str:
    metric = results.metric(task)
    short = {"accuracy": "acc", "matthews_correlation": "mcc"}
    return task if metric is None else f"{task} {short.get(metric, metric)}"


def _protocols(results: ResultsTable) -> list[str]:
    lines = []
    for task in results.tasks:
        for group in results.groups():
            protocol = group.first.protocol
            if group.task != task or protocol is None:
                continue
            lines.append(
                f"{task}: {protocol.num_train_examples:,} training rows, scored on "
                f"{protocol.num_eval_examples:,} rows of {protocol.report_split}, {protocol.selection} checkpoint by "
                f"{protocol.metric} on {protocol.selection_split}"
            )
    return list(dict.fromkeys(lines))


def _bold_notes(scored: dict[str, ColumnRanking], statistic: str) -> list[str]:
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


def _notes(results: ResultsTable, ranking: Ranking, measured: list[Column], header: list[str]) -> list[str]:
    notes = ["scores in percent, errors (lower is better) as they are"]
    if "avg" in header:
        notes.append("avg: mean over the tasks, in percent, of methods that have all of them")
    if "avg rank" in header:
        notes.append(
            f"avg rank: 1 is best; mean over the {ranking.blocks} (task, seed) that every method with a score finished"
        )
    notes += [
        "% of backbone: trained parameters, head included, over the encoder's (head excluded)",
        "train s: evaluation excluded, summed over the tasks that the method has run",
        *(f"{column.name}: {column.note}" for column in measured),
    ]
    if len(results.tasks) > 1:
        notes.append("parameters, memory, operations and speed: of the costliest task")
    notes += _plan_notes(results)
    cells = results.cells.values()
    if any(cell.planned is not None and cell.group and len(cell.group.seeds) < cell.planned for cell in cells):
        notes.append("(2/3): 2 of 3 seeds finished")
    if any(RATE_OPEN in cell.unfinished for cell in cells):
        notes.append(f"{RATE_OPEN}: several learning rates are being tried, none has been taken")
    return notes + [f"deviation: {remark}" for remark in results.remarks]


def _plan_notes(results: ResultsTable) -> list[str]:
    """Of methods that have not run: whose costs are the plan's, and what the plan said of the others."""
    counted, notes = [], []
    for method in results.methods:
        cells = [results.cells[method, task] for task in results.tasks]
        costs = [cell.costs for cell in cells if cell.costs]
        if any(cell.group for cell in cells):
            continue
        if any(cost.trainable_method is not None for cost in costs):
            counted.append(method)
        notes += [f"{method}: {note}" for note in dict.fromkeys(cost.note for cost in costs if cost.note)]
    return [f"counted by plan, not run: parameters and ledger of {', '.join(counted)}", *notes] if counted else notes


def comparison_table(comparisons: list[Comparison]) -> ReportTable:
    """The comparisons of one sheet, and each of them in words."""
    rows = []
    for one in comparisons:
        found = one.difference
        if found is None or one.p is None:
            rows.append([one.name, MISSING, MISSING, "0", MISSING, MISSING])
            continue
        interval = f"[{one.show(found.interval[0])}, {one.show(found.interval[1])}]" if found.interval else MISSING
        difference = one.show(found.mean, sign=True)
        rows.append([one.name, difference, interval, str(found.n), show_p(found.p), show_p(one.p)])
    unit = "points" if comparisons[0].points else "score (errors negated)"
    header = ["comparison", f"difference, {unit}", "95 % CI", "n", "p", "p after Holm"]
    notes = [
        *(one.words() for one in comparisons),
        "difference: mean over the n (task, seed) that both finished; 95 % CI: percentile bootstrap over them",
        "p: two-sided sign-flip test of the pairs; after Holm: corrected for all comparisons of this report",
    ]
    return ReportTable(f"{comparisons[0].results}: comparisons", header, rows, notes)


KINDS = [field.name.removesuffix("_bytes") for field in fields(MemoryAtPeak)]


def cost_table(rows: list[dict[str, Any]]) -> ReportTable:
    """One row a method.

    Args:
        rows: As `petl-bench plan --json` prints them.
    """
    counted = [row for row in rows if row["params"]]
    estimate = counted[0]["memory"]["estimate"]
    with_budget = "fits" in counted[0]
    header = ["method", "layers", "method params", "head params", "% of backbone"]
    header += [f"{kind} MiB" for kind in KINDS]
    header += ["peak MiB", "x below full", "step GFLOP", "inference GFLOP"]
    header += ["fits", "largest batch"] if with_budget else []
    title = (
        f"{counted[0]['backbone']}, {counted[0]['task']}: one update of {estimate['batch_size']} rows x "
        f"{estimate['sequence_length']} tokens, {counted[0]['precision']}, AdamW"
    )
    cells = [_cost_cells(row, with_budget) for row in counted]
    return ReportTable(title, header, cells, _cost_notes(rows, estimate))


def _cost_cells(row: dict[str, Any], with_budget: bool) -> list[str]:
    params, estimate, flops, layers = row["params"], row["memory"]["estimate"], row["flops"], row["layers"]
    reduction = row["peak_reduction"]
    cells = [
        row["label"],
        f"{layers['bottom']}-{layers['top']}",
        f"{params['trainable_method']:,}",
        f"{params['trainable_head']:,}",
        f"{params['trainable_share_of_backbone_percent']:.3f}",
        *(f"{estimate[f'{kind}_bytes'] / MIB:,.1f}" for kind in KINDS),
        f"{estimate['peak_bytes'] / MIB:,.1f}",
        MISSING if reduction is None else f"{reduction:.2f}",
        f"{flops['train_step_flops'] / 1e9:,.1f}",
        f"{flops['inference_flops'] / 1e9:,.1f}",
    ]
    if with_budget:
        cells += ["yes" if row["fits"] else "no", f"{row['largest_batch_size']:,}"]
    return cells


def _cost_notes(rows: list[dict[str, Any]], estimate: dict[str, Any]) -> list[str]:
    kernels = {row["memory"]["estimate"]["attention_kernel"] for row in rows if row["params"]}
    split = f", in {estimate['accumulation']} passes" if estimate["accumulation"] > 1 else ""
    notes = [
        f"the update: optimizer states are there, no row is padded{split}; counted storage by storage as torch's "
        f"{estimate['device']} kernels allocate (attention: {', '.join(sorted(kernels))})",
        "each kind at its own most, temporaries at the peak; the kinds need not be at their most when the peak is",
        "% of backbone: trained parameters, head included, over the encoder's (head excluded)",
        "GFLOP: matrix products and fused attention, a multiply-add as two; inference: the same rows, merged if it can",
    ]
    return notes + [f"{row['method']}: {row['note']}" for row in rows if row["note"]]
