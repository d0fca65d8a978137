"""The tables of a report and of a plan: results, comparisons, costs."""

from __future__ import annotations

from typing import Any

from petl_bench.records import OOD_SCORES
from petl_bench.records.predictions import Ood
from petl_bench.records.schema import BASELINES, MEMORY_KINDS
from petl_bench.reports.cost_columns import cost_cell, cost_columns, cost_definitions, machine_notes
from petl_bench.reports.fields import FIELDS, MIB, MISSING, OOD_FIGURES, Field, score_text, short_metric
from petl_bench.reports.protocol import treatment_notes
from petl_bench.reports.ranking import Analysis, ColumnRanking, Ranking, central
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import RATE_OPEN, Cell, ResultsTable
from petl_bench.reports.significance import SIGNIFICANCE


def cell_text(results: ResultsTable, method: str, task: str, statistic: str) -> str:
    """Formats the score of one cell, in percent unless it is an error.

    Args:
        results: The table that holds the cell.
        method: Its row.
        task: Its column.
        statistic: `mean` (± sd) or `median` (with the range).

    Returns:
        The text; the statuses of the runs if none finished.
    """
    cell, score = results.cells[method, task], results.score(method, task)
    if score is None:
        return ", ".join(cell.unfinished) or MISSING

    def show(value: float) -> str:
        return score_text(value, in_percent=results.in_percent(task))

    is_partial = cell.planned is not None and score.n < cell.planned
    count = f"{score.n}/{cell.planned}" if is_partial else str(score.n)
    text = show(central(score, statistic))
    if statistic == "median":
        return f"{text} ({count})" + (f" [{show(score.lowest)}, {show(score.highest)}]" if score.n > 1 else "")
    spread = f" ± {show(score.sd)}" if score.sd is not None else ""
    return f"{text}{spread}" + (f" ({count})" if is_partial else "")


def counts(cells: list[Cell]) -> str:
    """Formats how many seeds finished over the tasks, and for an incomplete study of how many."""
    finished = [len(cell.group.records) if cell.group else 0 for cell in cells if cell.group or cell.planned]
    if not finished:
        return MISSING
    text = _span(finished)
    planned = [cell.planned for cell in cells if cell.planned]
    complete = all(cell.group and len(cell.group.records) >= cell.planned for cell in cells if cell.planned)
    return text if complete else f"{text}/{_span(planned)}"


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"


def parameter_cells(columns: list[Field], cells: list[Cell]) -> list[str]:
    """Numbers of parameters on the task where the method trains the most; the planned ones if no run has finished."""
    records = [cell.group.first for cell in cells if cell.group and cell.group.first.params]
    if records:
        largest = max(records, key=FIELDS["params_trainable"].value)
        return [column.text(column.value(largest)) for column in columns]
    planned = [cell.costs for cell in cells if cell.costs and cell.costs.trainable_method is not None]
    costs = max(planned, key=lambda cost: (cost.trainable_method or 0) + (cost.trainable_head or 0), default=None)
    return [column.text(column.planned_value(costs)) for column in columns]


_SHARE = FIELDS["params_trainable_share_of_backbone_percent"]

_TITLES = {"mean": "mean ± sd over seeds", "median": "median (n) [lowest, highest] over seeds"}


def scores_table(analysis: Analysis, statistic: str = "mean") -> ReportTable:
    """Makes the table of scores and costs. Scores are in percent; costs are those of the costliest task.

    Costs that several machines measured are in `costs_by_machine`.

    Args:
        analysis: The methods and tasks, ranked by the same statistic.
        statistic: `mean` or `median`.
    """
    results, ranking = analysis.results, analysis.ranking
    parameters = [field for field in FIELDS.values() if field.table and field.kind == "parameters"]
    costs = cost_columns(results)
    scored: dict[str, ColumnRanking] = {_heading(results, task): ranking.tasks[task] for task in results.tasks}
    share, *sizes = sorted(parameters, key=lambda field: field != _SHARE)
    header = ["method", "seeds", *scored]
    if ranking.averages:
        header.append("avg")
        scored["avg"] = ranking.average
    if ranked := len(ranking.ranks) > 1 and ranking.blocks > 1:
        header.append("avg rank")
    header += [column.name for column in (share, *costs, *sizes)]
    methods = _shown_methods(results)
    rows = []
    for method in methods:
        cells = [results.cells[method, task] for task in results.tasks]
        row = [method, counts(cells)]
        row += [cell_text(results, method, task, statistic) for task in results.tasks]
        if ranking.averages:
            average = ranking.averages.get(method)
            row.append(MISSING if average is None else score_text(average, in_percent=True))
        row += [f"{ranking.ranks[method]:.2f}" if method in ranking.ranks else MISSING] * ranked
        row += parameter_cells([share], cells) + [cost_cell(column, cells) for column in costs]
        rows.append(row + parameter_cells(sizes, cells))
    baselines = _baseline_rows(results, header)
    rows += baselines
    bold = frozenset(
        (number, header.index(name))
        for name, column in scored.items()
        for number, method in enumerate(methods)
        if method in column.bold
    )
    notes = [*treatment_notes(results), *_protocols(results)]
    notes += [*_bold_notes(scored, statistic), *_notes(results, ranking, costs, header)]
    if waiting := [method for method in results.methods if method not in methods]:
        notes.append(f"no run yet: {', '.join(waiting)}")
    notes += [f"{name}, a baseline: {BASELINES[name]}" for name, *_ in baselines if name in BASELINES]
    # Memory columns are only shown together with the batch size.
    memory = [column.name for column in costs if column.depends_on_batch or column == FIELDS["batch_size"]]
    first = dict.fromkeys(["method", "avg", *scored])
    priority = (*((name,) for name in first), tuple(memory), ("seeds",), (share.name,))
    return ReportTable(
        f"{results.title}: {_TITLES[statistic]}",
        header,
        rows,
        notes,
        bold,
        headline=headline(results),
        priority=priority,
        baselines=len(baselines),
    )


def _baseline_rows(results: ResultsTable, header: list[str]) -> list[list[str]]:
    """A row for each baseline, with scores in the columns of the tasks that it has scores for."""
    rows = []
    for name, by_task in results.baselines().items():
        shown = {
            _heading(results, task): score_text(score, in_percent=results.in_percent(task))
            for task, score in by_task.items()
        }
        rows.append([name, *(shown.get(column, MISSING) for column in header[1:])])
    return rows


def baseline_notes(results: ResultsTable) -> list[str]:
    """Describes each baseline with its scores, for places where no table shows them."""
    notes = []
    for name, by_task in results.baselines().items():
        scores = [
            f"{score_text(score, in_percent=results.in_percent(task))} ({_heading(results, task)})"
            for task, score in by_task.items()
        ]
        notes.append(f"{name}, a baseline ({BASELINES.get(name, 'unknown here')}): {', '.join(scores)}")
    return notes


def _shown_methods(results: ResultsTable) -> list[str]:
    """The methods with a run that ended or was planned in detail; all methods if there are none."""
    shown = [
        method
        for method in results.methods
        if any((cell := results.cells[method, task]).group or cell.unfinished or cell.costs for task in results.tasks)
    ]
    return shown or results.methods


# A method counts as close to the best if it is at most this many points below it.
_CLOSE = 2.0


def headline(results: ResultsTable) -> str | None:
    """Says in a sentence which method scores best on the only task, and which small one comes close to it.

    It only describes these runs; the tests of a comparison decide whether a difference is more than chance.

    Returns:
        None for several tasks, for errors instead of scores, and for fewer than two methods with finished runs.
    """
    groups = results.groups()
    if len(results.tasks) != 1 or len(groups) < 2 or not results.in_percent(results.tasks[0]):
        return None
    task = results.tasks[0]
    scores = {group.label: score.mean for group in groups if (score := results.score(group.label, task)) is not None}
    ordered = sorted((group for group in groups if group.label in scores), key=lambda group: group.trained)
    best = max(ordered, key=lambda group: scores[group.label])
    small = next(group for group in ordered if 100 * (scores[best.label] - scores[group.label]) <= _CLOSE)
    seeds = sorted({len(group.records) for group in groups})
    trained = "Trained once each" if seeds == [1] else f"On the mean of {_span(seeds)} seeds"
    metric = (results.metric(task) or "").replace("_", " ")
    text = f"{trained}, {best.label} scores {score_text(scores[best.label], in_percent=True)} % {metric} on {task}, "
    text += f"the highest of {len(scores)} methods, and "
    if small is best:
        return f"{text}none with fewer trained parameters comes within {_CLOSE:g} points of it."
    share = _SHARE.text(_SHARE.value(small.first))
    text += f"{small.label} comes within {_CLOSE:g} points of it"
    return f"{text}, training {share} % as many parameters as the backbone has."


def ood_table(results: ResultsTable) -> ReportTable | None:
    """Makes the table of how well each method separates rows of its classes from others; None without such rows."""
    fields = [field for field in FIELDS.values() if field.path.startswith("ood.")]
    shown = [field for field in fields if field.path.endswith((".auroc", ".fpr95"))]
    groups = [group for task in results.tasks for group in results.groups() if group.task == task and group.first.ood]
    if not groups:
        return None
    rows = []
    for group in groups:
        statistics = [group.statistic(field) for field in shown]
        cells = [
            MISSING
            if statistic is None
            else field.text(statistic.mean) + (f" ± {field.text(statistic.sd)}" if statistic.sd is not None else "")
            for field, statistic in zip(shown, statistics, strict=True)
        ]
        rows.append(
            [
                group.label,
                group.task,
                str(len(group.records)),
                cell_text(results, group.label, group.task, "mean"),
                *cells,
            ]
        )
    notes = [f"{name}: {definition}" for name, definition in (OOD_FIGURES[key] for key in ("auroc", "fpr95"))]
    notes += [f"{score}: {explanation}" for score, explanation in OOD_SCORES.items()]
    notes += dict.fromkeys(
        f"{group.task}: {ood.num_examples:,} rows out of distribution ({_ood_kind(ood)})"
        for group in groups
        if (ood := group.first.ood)
    )
    notes.append("mean ± sd over seeds, in percent; average precision: --format csv or json, and the page")
    header = ["method", "task", "seeds", "score", *(field.name for field in shown)]
    return ReportTable(f"{results.title}: rows out of distribution", header, rows, notes, prose=("task",))


def _ood_kind(ood: Ood) -> str:
    return f"classes left out, {ood.share:g} kept" if ood.share is not None else ood.kind


def _heading(results: ResultsTable, task: str) -> str:
    metric = results.metric(task)
    return task if metric is None else f"{task} {short_metric(metric)}"


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
    """Explains what bold means if a cell is bold, and otherwise why no cell is bold."""
    notes = []
    if any(column.bold for column in scored.values()):
        notes.append(
            f"bold: the best {statistic} of a column and all that are not significantly different from it "
            f"(p >= {SIGNIFICANCE}, corrected for every pair of the column)"
        )
    untested = {name: column.untested for name, column in scored.items() if column.untested}
    if none := [name for name in untested if not scored[name].bold]:
        where = "" if len(none) == len(scored) else f" in {', '.join(none)}"
        notes.append(f"nothing is bold{where}: too few seeds or data sets for a test")
    notes += [
        f"{name}: no test against the best, for want of seeds: {', '.join(methods)}"
        for name, methods in untested.items()
        if name not in none
    ]
    return notes


def _notes(results: ResultsTable, ranking: Ranking, costs: list[Field], header: list[str]) -> list[str]:
    notes = ["scores in percent, errors (lower is better) as they are"]
    if "avg" in header:
        notes.append("avg: mean over the tasks, in percent, of methods that have all of them")
    if "avg rank" in header:
        notes.append(
            f"avg rank: 1 is best; mean over the {ranking.blocks} (task, seed) that every method with a score finished"
        )
    notes += [*cost_definitions([_SHARE, *costs]), *machine_notes(results)]
    if len(results.tasks) > 1:
        notes.append("parameters, memory, operations and speed: of the costliest task")
    notes += _plan_notes(results)
    cells = results.cells.values()
    if any(cell.planned is not None and cell.group and len(cell.group.seeds) < cell.planned for cell in cells):
        notes.append("(2/3): 2 of 3 seeds finished")
    if any(RATE_OPEN in cell.unfinished for cell in cells):
        notes.append(f"{RATE_OPEN}: several learning rates are being tried, none has been chosen")
    return notes + [f"deviation: {remark}" for remark in results.remarks]


def _plan_notes(results: ResultsTable) -> list[str]:
    """Names the methods without runs whose costs were planned, and gives the plan's remarks on the others."""
    counted, notes = [], []
    for method in results.methods:
        cells = [results.cells[method, task] for task in results.tasks]
        costs = [cell.costs for cell in cells if cell.costs]
        if any(cell.group for cell in cells):
            continue
        if any(cost.trainable_method is not None for cost in costs):
            counted.append(method)
        notes += [f"{method}: {note}" for note in dict.fromkeys(cost.note for cost in costs if cost.note)]
    return (
        [f"counted by plan, not run: parameters and estimated memory of {', '.join(counted)}", *notes]
        if counted
        else notes
    )


_PLANNED_PARAMS = (FIELDS["params_trainable_method"], FIELDS["params_trainable_head"], _SHARE)

_PLANNED_FLOPS = ("train_step_flops", "inference_flops")


def cost_table(rows: list[dict[str, Any]]) -> ReportTable:
    """Makes the table of `petl-bench plan`, one row per method.

    Args:
        rows: The rows that `petl-bench plan --json` prints.
    """
    counted = [row for row in rows if row["params"]]
    estimate = counted[0]["memory"]["estimate"]
    with_budget = "fits" in counted[0]
    header = ["method", "layers", *(field.name for field in _PLANNED_PARAMS)]
    header += [f"{kind} MiB" for kind in MEMORY_KINDS]
    header += ["peak MiB", "x below full", *(FIELDS[key].name for key in _PLANNED_FLOPS)]
    header += ["fits", "largest batch"] if with_budget else []
    title = (
        f"{counted[0]['backbone']}, {counted[0]['task']}: one update of {estimate['batch_size']} rows x "
        f"{estimate['sequence_length']} tokens, {counted[0]['precision']}, AdamW, {estimate['device']} kernels"
    )
    cells = [_cost_cells(row, with_budget) for row in counted]
    first_columns = ("method", "peak MiB", "x below full", "fits", "largest batch", _SHARE.name)
    priority = tuple((name,) for name in first_columns)
    return ReportTable(title, header, cells, _cost_notes(rows, estimate), priority=priority)


def _cost_cells(row: dict[str, Any], with_budget: bool) -> list[str]:
    params, estimate, flops, layers = row["params"], row["memory"]["estimate"], row["flops"], row["layers"]
    reduction = row["peak_reduction"]
    cells = [
        row["label"],
        f"{layers['bottom']}-{layers['top']}",
        *(field.text(params[field.path.rpartition(".")[2]]) for field in _PLANNED_PARAMS),
        *(f"{estimate[f'{kind}_bytes'] / MIB:,.1f}" for kind in MEMORY_KINDS),
        f"{estimate['peak_bytes'] / MIB:,.1f}",
        MISSING if reduction is None else f"{reduction:.2f}",
        *(f"{flops[key] / FIELDS[key].unit:,.1f}" for key in _PLANNED_FLOPS),
    ]
    if with_budget:
        cells += ["yes" if row["fits"] else "no", f"{row['largest_batch_size']:,}"]
    return cells


def _cost_notes(rows: list[dict[str, Any]], estimate: dict[str, Any]) -> list[str]:
    kernels = {row["memory"]["estimate"]["attention_kernel"] for row in rows if row["params"]}
    split = f", in {estimate['accumulation']} passes" if estimate["accumulation"] > 1 else ""
    dtypes = "/".join(sorted({row["weights_dtype"] for row in rows if row["params"]}))
    notes = [
        f"weights: trained ones in fp32, the others in {dtypes} (backbone.dtype)",
        f"the update: optimizer states are there, no row is padded{split}; counted storage by storage as torch's "
        f"{estimate['device']} kernels allocate (attention: {', '.join(sorted(kernels))})",
        "each kind at its own most, temporaries at the peak; the kinds need not be at their most when the peak is",
        f"{_SHARE.name}: {_SHARE.definition}",
        "GFLOP: matrix products and fused attention, a multiply-add as two; inference: the same rows, merged if it can",
    ]
    return notes + [f"{row['method']}: {row['note']}" for row in rows if row["note"]]
