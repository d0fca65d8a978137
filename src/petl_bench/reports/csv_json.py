"""Unrounded CSV and JSON for other programs; reads and writes the format of PEFT's method comparison."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from petl_bench.records.reading import finite
from petl_bench.records.schema import Record
from petl_bench.records.store import ADAPTER_CONFIG, ADAPTER_FOLDER, read_json
from petl_bench.reports.comparison_table import comparison_row
from petl_bench.reports.fields import FIELDS, MIB, MISSING, Field
from petl_bench.reports.groups import Group
from petl_bench.reports.machines import MeasuredCosts
from petl_bench.reports.protocol import settings_of, still_improving
from petl_bench.reports.ranking import Analysis
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import Cell, ResultsTable
from petl_bench.reports.significance import Statistic, average_ranks


def to_csv(analyses: list[Analysis]) -> str:
    """Writes one line per method and task: statistics, costs, means of the other metrics, and the task's baselines.

    Each further machine that measured costs has a separate line, without scores.
    """
    rows = [row for analysis in analyses for row in _flat_rows(analysis)]
    names = dict.fromkeys(name for row in rows for name in row)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")


# The columns that identify the study, task, backbone and method of a line.
_CELL = ("study", "task", "backbone", "method")

# The settings that CSV contains; JSON contains all.
_SETTINGS = ("epochs", "most updates", "batch size", "learning rate", "head learning rate")


def _flat_rows(analysis: Analysis) -> list[dict[str, Any]]:
    rows = []
    baselines = analysis.results.baselines()
    for row in _cell_rows(analysis):
        scores = row.pop("scores")
        primary = scores.pop(row["metric"], _described(None))
        by_seed = primary.pop("by_seed")
        settings = row.pop("settings")
        shown_settings = {name.replace(" ", "_"): settings.get(name) for name in _SETTINGS}
        flat = {
            **row,
            **shown_settings,
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
    """Writes all cells with all metrics, the methods' averages and ranks, comparisons, and the studies' parts.

    Args:
        analyses: The results tables with their rankings and comparisons.
        of_studies: Paper comparisons, claims and deviations, as returned by `study_json`.
    """
    content = {
        "groups": [row for analysis in analyses for row in _cell_rows(analysis)],
        "methods": [row for analysis in analyses for row in _method_rows(analysis)],
        "comparisons": [comparison_row(comparison) for analysis in analyses for comparison in analysis.comparisons],
        "data_sets": {analysis.results.title: analysis.differences.data_sets for analysis in analyses},
    }
    baselines = {analysis.results.title: scores for analysis in analyses if (scores := analysis.results.baselines())}
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
    """Costs of one method on one task. `costs` has those per machine; the others are None if there are several."""
    protocol = cell.group.first.protocol if cell.group else None
    shared = {name: getattr(protocol, name, None) for name in _PROTOCOL}
    means = {f"{field.key}_mean": cell.measured(field) for field in _cost_fields()}
    return shared | means | {"costs": [_measured(costs) for costs in cell.group.measured_costs] if cell.group else []}


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


# Parts of a result of PEFT's method comparison (https://github.com/huggingface/peft, method_comparison): JSON per run.
_SUITE_PARTS = ("run_info", "train_info", "meta_info")

_SUITE_STATUS = {"finished": "success", "interrupted": "canceled"}


def to_method_comparison(record: Record, folder: Path) -> dict[str, Any]:
    """Converts one run to the format of PEFT's method comparison; values that we do not have are None.

    Args:
        record: The run's record.
        folder: The run's folder; its name becomes part of the experiment's name.
    """
    params, memory = record.params, record.memory
    return {
        "run_info": {
            "created_at": None,
            "total_time": None,
            "experiment_name": f"{(record.config.get('method') or {}).get('name')}/{folder.name}",
            "peft_branch": None,
            "train_config": _train_config(record),
            "peft_config": _peft_config(folder, record.config),
            "error_msg": record.error or "",
        },
        "train_info": {
            "accelerator_memory_max": memory and memory.device and memory.device.train_peak_reserved_bytes,
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_reserved_99th": None,
            "train_time": record.time and record.time.train_seconds,
            "file_size": params and params.stored_bytes,
            "num_trainable_params": params and params.trainable,
            "num_total_params": params and params.total,
            "status": _SUITE_STATUS.get(record.status, "failed"),
            "metrics": _metrics(record),
        },
        "meta_info": _meta_info(record),
    }


def _train_config(record: Record) -> dict[str, Any]:
    """The training settings, under the names that PEFT's suite uses."""
    config, protocol, train = record.config, record.protocol, record.config.get("train") or {}
    dtypes = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    return {
        "model_id": _model_name(config),
        "dtype": protocol and dtypes.get(protocol.precision),
        "max_seq_length": protocol and protocol.max_length,
        "batch_size": train.get("batch_size"),
        "batch_size_eval": train.get("eval_batch_size"),
        "max_steps": record.history[-1].step if record.history else None,
        "compile": train.get("compile"),
        "use_gc": train.get("gradient_checkpointing"),
        "seed": train.get("seed"),
        "grad_norm_clip": train.get("max_grad_norm"),
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {"lr": train.get("learning_rate"), "weight_decay": train.get("weight_decay")},
        "lr_scheduler": train.get("schedule"),
        "attn_implementation": protocol and protocol.attention_implementation,
    }


def _metrics(record: Record) -> list[dict[str, Any]]:
    """The evaluations during training, followed by the reported scores."""
    metrics = [
        {
            "step": evaluation.step,
            "train loss": evaluation.train_loss,
            "train samples": evaluation.step * (record.batch_size or 0),
        }
        | {f"valid {name}": score for name, score in evaluation.scores.items()}
        for evaluation in record.history
    ]
    if record.selected_scores:
        last = {key: metrics[-1][key] for key in ("step", "train loss", "train samples")} if metrics else {}
        metrics.append(last | {f"test {name}": score for name, score in record.selected_scores.items()})
    return metrics


def _meta_info(record: Record) -> dict[str, Any]:
    """The base model, the rows, the packages and the machine."""
    protocol, versions = record.protocol, record.versions
    return {
        "model_info": {"sha": (record.config.get("backbone") or {}).get("revision"), "created_at": None},
        "dataset_info": {protocol.task: {"sha": record.data and record.data.revision}} if protocol else {},
        "package_info": {
            f"{name}-version": versions.get(name) for name in ("transformers", "peft", "datasets", "torch")
        },
        "system_info": {
            "system": record.hardware.get("platform"),
            "processor": record.hardware.get("processor"),
            "accelerator": record.hardware.get("device"),
        },
        "petl_bench_info": {
            "version": versions.get("petl-bench"),
            "run_key": record.run_key,
            "ended_at": record.ended_at,
            "report_split": protocol and protocol.report_split,
        },
    }


def _model_name(config: dict[str, Any]) -> str | None:
    backbone = config.get("backbone") or {}
    return backbone.get("hub_id") or backbone.get("name")


def _peft_config(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The adapter's config as PEFT stored it, else the method's settings; None for full fine-tuning, as in PEFT."""
    method = config.get("method") or {}
    if method.get("name") == "full":
        return None
    with suppress(OSError, ValueError):
        stored = read_json(folder / ADAPTER_FOLDER / ADAPTER_CONFIG)
        if isinstance(stored, dict):
            return stored
    return {"peft_type": str(method.get("type") or method.get("name")).upper()} | {
        key: value for key, value in method.items() if key not in ("name", "type")
    }


def find_method_comparison(folders: Iterable[str]) -> dict[Path, dict[str, Any]]:
    """Finds results of PEFT's method comparison directly in these folders, by file; other files are ignored."""
    results = {}
    for file in sorted(file for folder in folders for file in Path(folder).glob("*.json")):
        try:
            content = read_json(file)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in _SUITE_PARTS):
            results[file] = finite(content)
    return results


def method_comparison_tables(results: dict[Path, dict[str, Any]]) -> list[ReportTable]:
    """Makes one table per model and metric from results of PEFT's method comparison; nothing is averaged.

    Args:
        results: From `find_method_comparison`.
    """
    rows: dict[tuple[str, str], list[list[str]]] = {}
    for file, content in results.items():
        run, train, meta = (content[part] for part in _SUITE_PARTS)
        metrics, settings = train.get("metrics"), _part(run, "train_config")
        last = metrics[-1] if isinstance(metrics, list) and metrics and isinstance(metrics[-1], dict) else {}
        metric, score = next(((key, last[key]) for key in last if key.startswith("test ")), ("test score", None))
        status, adapter = train.get("status"), run.get("peft_config")
        rows.setdefault((str(settings.get("model_id") or "unknown model"), metric), []).append(
            [
                str(run.get("experiment_name") or file.stem),
                "full fine-tuning" if adapter is None else str(_part(run, "peft_config").get("peft_type") or MISSING),
                _figure(score, 4) if status == "success" else str(status or MISSING),
                _figure(train.get("num_trainable_params")),
                _figure(train.get("accelerator_memory_max", train.get("cuda_memory_max")), unit=MIB),
                _figure(train.get("train_time"), 1),
                _figure(train.get("file_size"), 1, unit=MIB),
                _figure(last.get("step")),
                str(_part(meta, "package_info").get("peft-version") or MISSING),
            ]
        )
    notes = [
        "results of other programs in the format of PEFT's method comparison, a line a file, as the files give them: "
        "another task and protocol than ours, so they are in no average, test or plot"
    ]
    costs = ["trained params", "memory MiB", "train s", "file MiB", "updates", "PEFT"]
    return [
        ReportTable(f"method_comparison: {model}", ["experiment", "type", metric, *costs], lines, notes)
        for (model, metric), lines in rows.items()
    ]


def _part(content: dict[str, Any], name: str) -> dict[str, Any]:
    part = content.get(name)
    return part if isinstance(part, dict) else {}


def _figure(value: Any, digits: int = 0, unit: float = 1) -> str:
    return f"{value / unit:,.{digits}f}" if type(value) in (int, float) else MISSING
