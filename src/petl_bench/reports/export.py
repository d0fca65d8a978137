"""Reports for programs: CSV and JSON. Nothing is rounded."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from petl_bench.reports.groups import Group
from petl_bench.reports.ranking import Comparison, Ranking
from petl_bench.reports.results_table import Cell, ResultsTable
from petl_bench.reports.significance import Statistic, average_ranks

_COSTS = {
    "train_seconds": ("time", "train_seconds"),
    "train_examples_per_second": ("time", "train_examples_per_second"),
    "train_tokens_per_second": ("time", "train_tokens_per_second"),
    "padding_share": ("time", "padding_share"),
    "process_peak_rss_bytes": ("memory", "process_peak_rss_bytes"),
    "train_peak_allocated_bytes": ("memory", "device", "train_peak_allocated_bytes"),
    "estimated_peak_bytes": ("memory", "estimate", "peak_bytes"),
    "train_step_flops": ("flops", "train_step_flops"),
    "inference_flops": ("flops", "inference_flops"),
    "inference_latency_ms": ("inference", "latency_ms_median"),
    "inference_examples_per_second": ("inference", "examples_per_second"),
}


def to_csv(rankings: list[tuple[ResultsTable, Ranking]]) -> str:
    """One line a method and task: the primary metric's statistics, the means of the other metrics, the costs."""
    rows = [row for results, ranking in rankings for row in _flat_rows(results, ranking)]
    names = dict.fromkeys(name for row in rows for name in row)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")


def _flat_rows(results: ResultsTable, ranking: Ranking) -> list[dict[str, Any]]:
    rows = []
    for row in _cell_rows(results, ranking):
        scores = row.pop("scores")
        primary = scores.pop(row["metric"], _described(None))
        by_seed = primary.pop("by_seed")
        flat = {**row, **primary, "seeds": " ".join(map(str, by_seed)), "unfinished": " ".join(row["unfinished"])}
        # The sparse ones come last.
        costs = {name: flat.pop(name) for name in list(flat) if name.removesuffix("_mean") in _COSTS}
        rows.append(flat | costs | {f"{name}_mean": score["mean"] for name, score in scores.items()})
    return rows


def to_json(
    rankings: list[tuple[ResultsTable, Ranking]], comparisons: list[Comparison], of_studies: dict[str, Any]
) -> str:
    """All groups with all metrics, the methods' averages and ranks, the comparisons, what studies are held against."""
    content = {
        "groups": [row for results, ranking in rankings for row in _cell_rows(results, ranking)],
        "methods": [row for results, ranking in rankings for row in _method_rows(results, ranking)],
        "comparisons": [_comparison_row(one) for one in comparisons],
    }
    return json.dumps(content | of_studies, indent=2)


def _cell_rows(results: ResultsTable, ranking: Ranking) -> list[dict[str, Any]]:
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
                    **_params(cell),
                    **_costs(cell.group),
                }
            )
    return rows


def _ranks(results: ResultsTable, task: str) -> dict[str, float]:
    """Ranks of the methods' means on one task."""
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
    params = cell.group.first.params if cell.group else None
    known, costs = params or cell.costs, cell.costs
    method, head = (known.trainable_method, known.trainable_head) if known else (None, None)
    return {
        "counted": "run" if params else "plan" if costs else None,
        "params_trainable": None if method is None or head is None else method + head,
        "params_trainable_method": method,
        "params_trainable_head": head,
        "params_trainable_share_of_backbone_percent": known.trainable_share_of_backbone_percent if known else None,
        "stored_bytes": params.stored_bytes if params else None,
        "planned_peak_bytes": costs.peak_bytes if costs else None,
    }


def _costs(group: Group | None) -> dict[str, Any]:
    protocol = group.first.protocol if group else None
    shared = {
        name: getattr(protocol, name, None)
        for name in ("num_train_examples", "num_eval_examples", "selection_split", "report_split")
    }
    found = {name: group.statistic(*path) if group else None for name, path in _COSTS.items()}
    return shared | {f"{name}_mean": one.mean if one else None for name, one in found.items()}


def _method_rows(results: ResultsTable, ranking: Ranking) -> list[dict[str, Any]]:
    return [
        {
            "sheet": results.title,
            "study": results.study,
            "method": method,
            "average": ranking.averages.get(method),
            "average_p_against_best": ranking.average.p.get(method),
            "average_rank": ranking.ranks.get(method),
            "rank_blocks": ranking.blocks,
        }
        for method in results.methods
    ]


def _comparison_row(one: Comparison) -> dict[str, Any]:
    found = one.difference
    interval = found.interval if found else None
    return {
        "sheet": one.results,
        "method": one.method,
        "reference": one.reference,
        "n": found.n if found else 0,
        "difference": found.mean if found else None,
        "ci_low": interval[0] if interval else None,
        "ci_high": interval[1] if interval else None,
        "p": found.p if found else None,
        "p_holm": one.p,
        "least_p": found.least_p if found else None,
        "least_p_holm": one.least_p,
        "words": one.words(),
    }
