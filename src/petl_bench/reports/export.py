"""CSV and JSON, for other programs. Nothing is rounded."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from petl_bench.reports.comparison_table import sentence
from petl_bench.reports.fields import FIELDS, Field
from petl_bench.reports.groups import Group
from petl_bench.reports.machines import MeasuredCosts
from petl_bench.reports.protocol import settings_of, still_improving
from petl_bench.reports.ranking import Analysis, Comparison
from petl_bench.reports.results_table import Cell, ResultsTable
from petl_bench.reports.significance import Statistic, average_ranks


def to_csv(analyses: list[Analysis]) -> str:
    """Writes one line per method and task: its statistics, costs, means of the other metrics, the task's baselines.

    Each further machine that measured costs has a line of its own, without scores.
    """
    rows = [row for analysis in analyses for row in _flat_rows(analysis)]
    names = dict.fromkeys(name for row in rows for name in row)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")


# The columns that say which method, task and backbone a line is of.
_CELL = ("study", "task", "backbone", "method")

# The settings that CSV holds; JSON has all.
_SETTINGS = ("epochs", "most updates", "batch size", "learning rate", "head learning rate")


def _flat_rows(analysis: Analysis) -> list[dict[str, Any]]:
    rows = []
    baselines = analysis.results.baselines()
    for row in _cell_rows(analysis):
        scores = row.pop("scores")
        primary = scores.pop(row["metric"], _described(None))
        by_seed = primary.pop("by_seed")
        settings = row.pop("settings")
        told = {name.replace(" ", "_"): settings.get(name) for name in _SETTINGS}
        flat = {
            **row,
            **told,
            **primary,
            "seeds": " ".join(map(str, by_seed)),
            "unfinished": " ".join(row["unfinished"]),
        }
        # Columns that are often empty come last.
        measured, *further = flat.pop("costs") or [{}]
        costs = {name: flat.pop(name) for field in _cost_fields() if (name := f"{field.key}_mean") in flat}
        others = {f"{name}_mean": score["mean"] for name, score in scores.items()}
        of_task = {f"baseline_{name}": scored.get(row["task"]) for name, scored in baselines.items()}
        rows.append(flat | costs | measured | others | of_task)
        rows += [{name: flat[name] for name in _CELL} | measured for measured in further]
    return rows


def to_json(analyses: list[Analysis], of_studies: dict[str, Any]) -> str:
    """Writes all cells with all metrics, averages and ranks of the methods, comparisons, and the studies' parts.

    Args:
        analyses: The results tables with their rankings and comparisons.
        of_studies: Paper comparisons, claims and deviations, as `study_json` gives them.
    """
    content = {
        "groups": [row for analysis in analyses for row in _cell_rows(analysis)],
        "methods": [row for analysis in analyses for row in _method_rows(analysis)],
        "comparisons": [comparison_row(one) for analysis in analyses for one in analysis.comparisons],
        "data_sets": {analysis.results.title: analysis.differences.data_sets for analysis in analyses},
    }
    baselines = {one.results.title: found for one in analyses if (found := one.results.baselines())}
    return json.dumps(content | ({"baselines": baselines} if baselines else {}) | of_studies, indent=2)


def _cell_rows(analysis: Analysis) -> list[dict[str, Any]]:
    results, ranking = analysis.results, analysis.ranking
    rows = []
    for task in results.tasks:
        ranks = _ranks(results, task)
        for method in results.methods:
            cell = results.cells[method, task]
            if cell.group is None and results.study is None:
                continue
            rows.append(
                {
                    "study": results.study,
                    "task": task,
                    "backbone": cell.group.backbone if cell.group else None,
                    "method": method,
                    "planned": cell.planned,
                    "unfinished": list(cell.unfinished),
                    "metric": results.metric(task),
                    "higher_is_better": results.in_percent(task),
                    "rank": ranks.get(method),
                    "p_against_best": ranking.tasks[task].p.get(method),
                    "bold": method in ranking.tasks[task].bold,
                    "scores": _scores(cell.group),
                    "settings": settings_of(cell.group.first) if cell.group else {},
                    "still_improving": still_improving(cell.group) if cell.group else None,
                    **_params(cell),
                    **_costs(cell),
                }
            )
    return rows


def _ranks(results: ResultsTable, task: str) -> dict[str, float]:
    """Ranks the methods on one task by their means."""
    sign = 1 if results.in_percent(task) else -1
    means = {method: score.mean for method in results.methods if (score := results.score(method, task))}
    return average_ranks({method: {task: sign * mean} for method, mean in means.items()})[0]


def _scores(group: Group | None) -> dict[str, dict[str, Any]]:
    if group is None:
        return {}
    described = {}
    for metric in group.metrics():
        by_seed = {
            record.protocol.seed: record.selected_scores.get(metric) for record in group.records if record.protocol
        }
        described[metric] = _described(group.score(metric)) | {"by_seed": by_seed}
    return described


def _described(score: Statistic | None) -> dict[str, Any]:
    interval = score.interval() if score else None
    return {
        "n": score.n if score else 0,
        "mean": score.mean if score else None,
        "sd": score.sd if score else None,
        "median": score.median if score else None,
        "lowest": score.lowest if score else None,
        "highest": score.highest if score else None,
        "ci_low": interval[0] if interval else None,
        "ci_high": interval[1] if interval else None,
        "by_seed": {},
    }


def _params(cell: Cell) -> dict[str, Any]:
    params, costs = cell.group.first.params if cell.group else None, cell.costs
    fields = [field for field in FIELDS.values() if field.export and field.kind == "parameters"]
    return {
        "counted": "run" if params else "plan" if costs else None,
        **{
            field.key: field.value(cell.group.first) if cell.group and params else field.planned_value(costs)
            for field in fields
        },
        "planned_peak_bytes": FIELDS["estimated_peak_bytes"].planned_value(costs),
    }


_PROTOCOL = ("num_train_examples", "num_eval_examples", "selection_split", "report_split")


def _costs(cell: Cell) -> dict[str, Any]:
    """Costs of one method on one task; in `costs` those of each machine, apart from it None if there are several."""
    protocol = cell.group.first.protocol if cell.group else None
    shared = {name: getattr(protocol, name, None) for name in _PROTOCOL}
    means = {f"{field.key}_mean": cell.measured(field) for field in _cost_fields()}
    return shared | means | {"costs": [_measured(one) for one in cell.group.measured_costs] if cell.group else []}


def _measured(costs: MeasuredCosts) -> dict[str, Any]:
    fields = [field for field in _cost_fields() if field.depends_on_machine]
    return {
        "machine": costs.machine.name,
        "features": costs.cache,
        "measured_runs": len(costs.records),
        **{f"{field.key}_mean": costs.mean(field) for field in fields},
    }


def _cost_fields() -> list[Field]:
    return [field for field in FIELDS.values() if field.export and field.kind != "parameters"]


def _method_rows(analysis: Analysis) -> list[dict[str, Any]]:
    results, ranking = analysis.results, analysis.ranking
    return [
        {
            "table": results.title,
            "study": results.study,
            "method": method,
            "average": ranking.averages.get(method),
            "average_p_against_best": ranking.average.p.get(method),
            "average_bold": method in ranking.average.bold,
            "average_rank": ranking.ranks.get(method),
            "rank_blocks": ranking.blocks,
        }
        for method in results.methods
    ]


def comparison_row(one: Comparison) -> dict[str, Any]:
    """A comparison as plain containers; `task` is None over data sets, and differences are fractions."""
    found = one.difference
    interval = found.interval if found else None
    estimate = found.estimate if found else None
    return {
        "table": one.results,
        "task": one.task,
        "tasks": list(one.tasks),
        "method": one.method,
        "reference": one.reference,
        "n": found.n if found else 0,
        "rows": found.rows if found else None,
        "disagreements": found.disagreements if found else None,
        "difference": found.mean if found else None,
        "ci_low": interval[0] if interval else None,
        "ci_high": interval[1] if interval else None,
        "seeds_error": estimate.error if estimate and found and "seeds" in (found.test or "") else None,
        "rows_error": estimate.normal_error if estimate and found and found.test == "seeds and rows" else None,
        "detectable": estimate.detectable(one.family) if estimate and one.task is not None else None,
        "test": found.test if found else None,
        "p": found.p if found else None,
        "p_corrected": one.p,
        "corrected_for": one.family,
        "verdict": one.verdict,
        "sentence": sentence(one),
    }
