"""The page of `petl-bench report --html`: collects its data and writes a single file that needs no network access."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from petl_bench.process import atomic_write
from petl_bench.records import OOD_SCORES
from petl_bench.records.schema import CACHE_PLACES, Record, finite
from petl_bench.records.study_file import StudyFile
from petl_bench.reports.fields import AXES, FIELDS
from petl_bench.reports.groups import Group, NamedGroup, task_order
from petl_bench.reports.machines import Machine, machines_of
from petl_bench.reports.plots import score_scale
from petl_bench.reports.plots.kinds import layer_variability, rows_curves
from petl_bench.reports.plots.tuning import TuningCurve, tuning_sentences
from petl_bench.reports.protocol import batch_text, learning_curve, protocol_numbers, still_improving
from petl_bench.reports.render import ReportTable, check_page
from petl_bench.reports.significance import Statistic

# More points would make the page larger without a visible difference.
_MOST_POINTS = 120
_SHOWN_VERSIONS = ("petl-bench", "python", "torch", "transformers", "peft")


@dataclass(frozen=True)
class PageColumn:
    """A column of the page's table.

    Attributes:
        key: The key of its values in a row.
        name: Its heading.
        note: Its definition.
        kind: How the page writes a value: `text`, `number`, or `score`, whose digits follow the metric.
        digits: Decimals of numbers.
        always: Whether it is shown even if no row has a value.
    """

    key: str
    name: str
    note: str
    kind: str = "number"
    digits: int = 0
    always: bool = True


_ROW_COLUMNS = (
    PageColumn("method", "method", "the method, with the settings in which its variants differ", "text"),
    PageColumn("task", "task", "the task", "text"),
    PageColumn("backbone", "backbone", "the pretrained encoder", "text"),
    PageColumn(
        "score",
        "score ± sd",
        "the primary metric on the report split, mean over seeds and sample standard deviation (n - 1); in percent, "
        "errors (lower is better) as they are",
        "score",
    ),
    PageColumn("median", "median", "median over seeds", "score"),
    PageColumn("low", "95 % interval", "95 % t interval of the mean over three seeds or more", "score", always=False),
    PageColumn("rows", "train rows", "rows trained on"),
    PageColumn("n", "seeds", "runs that differ in their seed alone"),
)


def page_columns() -> list[PageColumn]:
    """The columns of the table: the row's identity, its score, and the numbers of `FIELDS` that the page shows."""
    shown = (f for f in FIELDS.values() if f.page)
    return [
        *_ROW_COLUMNS,
        *(PageColumn(f.key, f.name, f.definition, digits=f.digits, always=f.always) for f in shown),
    ]


@dataclass(frozen=True)
class PageInput:
    """What the page is made from.

    Attributes:
        named: The rows of its table.
        records: All records that were found, finished or not.
        studies: The studies that the records belong to.
        headlines: Sentences shown before the descriptions of the studies.
        notes: Notes on settings that differ between methods, methods that were still improving, and baselines.
        missing: Descriptions of the study cells in which seeds are missing.
        published: Rows as `published_rows` makes them.
        claims: Rows as `claim_rows` makes them.
        comparisons: Tables as `comparison_table` makes them.
        classes: Tables computed from the predictions: calibration, classes, confusions.
        bold: Keys of the runs whose method is bold in its column of the results table.
        incomplete: Keys of the runs on tasks that not all methods have finished.
        pairs: For each tested pair of methods, the key of one run of each, and 1 if the first is better, -1 if it is
            worse, 0 if no difference is shown.
        roc: ROC curves as `roc_curves` makes them, by the key of the run.
        tuning: Curves of searches, as `tuning_curves` makes them.
    """

    named: Sequence[NamedGroup]
    records: Sequence[Record]
    studies: Sequence[StudyFile] = ()
    headlines: Sequence[str] = ()
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()
    published: Sequence[Mapping[str, Any]] = ()
    claims: Sequence[Mapping[str, Any]] = ()
    comparisons: Sequence[ReportTable] = ()
    classes: Sequence[ReportTable] = ()
    bold: Collection[str] = ()
    incomplete: Collection[str] = ()
    pairs: Sequence[tuple[str, str, int]] = ()
    roc: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuning: Sequence[TuningCurve] = ()


def page_data(page: PageInput) -> dict[str, Any]:
    """Collects the data of the page in plain containers that `json.dumps` accepts."""
    # Tasks are in the order of the study; within a task, groups trained on the most rows come first.
    order = task_order(page.studies)
    named = sorted(
        page.named,
        key=lambda item: (order.get(item.group.task, -1), item.panel, -item.rows, item.group.trained, item.method),
    )
    machines = machines_of(measured for item in named for measured in item.group.measured_costs)
    rows = _rows(named, machines, page)
    by_key = {record.run_key: index for index, item in enumerate(named) for record in item.group.records}
    ids = {id(item): index for index, item in enumerate(named)}
    data = {
        "title": ", ".join(study.name for study in page.studies) or "PETL methods compared",
        "descriptions": [*page.headlines, *(study.description for study in page.studies if study.description)],
        "notes": list(page.notes),
        "deviations": [deviation for study in page.studies for deviation in study.deviations],
        "origin": _origin(named, page.records),
        # Rows and plots show the costs of the first machine, the one with the most records.
        "machines": [machine.name for machine in machines],
        "costs": _costs_by_machine(named) if len(machines) > 1 else None,
        "columns": [asdict(column) for column in page_columns() if column.always or _any(rows, column.key)],
        "axes": _axes(named, rows),
        "methods": list(dict.fromkeys([*_by_size(named), *(curve.method for curve in page.tuning)])),
        "rows": rows,
        "rows_curves": [
            {"task": curve.task, "method": curve.method, "rows": [ids[id(point)] for point in curve.points]}
            for curve in rows_curves(named)
        ],
        "tuning": [curve.to_dict() for curve in page.tuning],
        "tuning_sentences": tuning_sentences(page.tuning),
        "pairs": [[by_key[a], by_key[b], sign] for a, b, sign in page.pairs if a in by_key and b in by_key],
        "published": [dict(row) for row in page.published],
        "claims": [dict(row) for row in page.claims],
        "comparisons": list(map(_plain, page.comparisons)),
        "classes": list(map(_plain, page.classes)),
        "missing": list(page.missing),
    }
    cleaned: dict[str, Any] = finite(data)
    return cleaned


def _rows(named: Sequence[NamedGroup], machines: Sequence[Machine], page: PageInput) -> list[dict[str, Any]]:
    """The rows of the page's table, with the data of its plots and the costs on the first machine."""
    # A Pareto front only joins rows of the same protocol.
    protocols = protocol_numbers([item.group for item in named])
    return [
        _row(index, item, machines[0], page.bold)
        | {
            "roc": _roc(item.group, page.roc),
            "protocol": protocols[index],
            "complete": not any(record.run_key in page.incomplete for record in item.group.records),
        }
        for index, item in enumerate(named)
    ]


def _by_size(named: Sequence[NamedGroup]) -> list[str]:
    return [item.method for item in sorted(named, key=lambda item: item.group.trained)]


def _axes(named: Sequence[NamedGroup], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The costs that scores can be plotted against: those that at least one row has."""
    batch = batch_text(item.group for item in named)
    return [
        {
            "key": key,
            "name": axis.axis_label + (f", {batch}" if axis.depends_on_batch else ""),
            "short": axis.name + (f" ({batch})" if axis.depends_on_batch else ""),
            "digits": axis.digits,
            "log": axis.log_axis,
            "less_is_better": not axis.higher_is_better,
        }
        for key in AXES
        if _any(rows, key) and (axis := FIELDS[key])
    ]


def _plain(table: ReportTable) -> dict[str, Any]:
    return {"title": table.title, "header": table.header, "rows": table.rows, "notes": table.notes}


def _row(index: int, item: NamedGroup, machine: Machine, bold: Collection[str]) -> dict[str, Any]:
    group = item.group
    protocol = group.first.protocol
    assert protocol
    return {
        "id": index,
        "method": item.method,
        "label": group.label,
        "task": group.task,
        "backbone": group.backbone,
        "metric": group.metric.replace("_", " "),
        "percent": group.in_percent,
        "split": protocol.report_split,
        "evaluated": protocol.num_eval_examples,
        "selection_split": protocol.selection_split,
        "selection": protocol.selection,
        "rows": item.rows,
        "seeds": group.seeds,
        "bold": any(record.run_key in bold for record in group.records),
        **_score(group),
        **{
            key: statistic.mean / field.unit if (statistic := group.statistic(field, machine)) else None
            for key, field in FIELDS.items()
            if field.page or field.axis
        },
        "history": _history(group),
        "improving": still_improving(group),
        "variability": _variability(group),
    }


def _costs_by_machine(named: Sequence[NamedGroup]) -> dict[str, Any]:
    """The measured costs of every row on each machine, as the cells of a table."""
    known = [field for field in FIELDS.values() if field.page and any(item.group.has(field) for item in named)]
    fields = [field for field in known if field.depends_on_machine]
    lines = []
    for item in named:
        row = [item.method, item.group.task, item.group.backbone]
        for measured in item.group.measured_costs:
            place = [measured.machine.name, CACHE_PLACES.get(measured.cache or "")]
            costs = [field.text(measured.mean(field)) for field in fields]
            lines.append([*row, *place, str(len(measured.records)), *costs])
    text_columns = ["method", "task", "backbone", "machine", "features of frozen layers"]
    return {"words": text_columns, "numbers": ["seeds", *(field.name for field in fields)], "lines": lines}


def _score(group: Group) -> dict[str, Any]:
    scale = score_scale(group)
    values = [record.selected_scores.get(group.metric) for record in group.records]
    known = sorted(scale * value for value in values if value is not None and math.isfinite(value))
    statistic = Statistic.of(known)
    if statistic is None:
        return {"n": 0, "score": None, "sd": None, "median": None, "low": None, "high": None, "values": []}
    low, high = statistic.interval() or (None, None)
    return {
        "n": statistic.n,
        "score": statistic.mean,
        "sd": statistic.sd,
        "median": statistic.median,
        "low": low,
        "high": high,
        "values": known,
    }


def _history(group: Group) -> list[list[float]]:
    """The learning curve as points [step, epoch, mean, sd, n], thinned to at most `_MOST_POINTS`."""
    scale = score_scale(group)
    points = [
        [point.step, point.epoch, scale * point.score.mean, scale * (point.score.sd or 0), point.score.n]
        for point in learning_curve(group)
    ]
    stride = math.ceil(len(points) / _MOST_POINTS) if points else 1
    # The last point is always kept.
    return points[:-1:stride] + points[-1:]


def _roc(group: Group, curves: Mapping[str, Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Points [false-positive rate, true-positive rate, sd] of each score in percent, averaged over the seeds."""
    known = [curves[record.run_key] for record in group.records if record.run_key in curves]
    points: dict[str, list[list[float]]] = {}
    for name in (score for score in OOD_SCORES if known and all(score in by_score for by_score in known)):
        statistics = [Statistic.of(rates) for rates in zip(*(by_score[name] for by_score in known), strict=True)]
        step = 100 / (len(statistics) - 1)
        points[name] = [[i * step, 100 * s.mean, 100 * (s.sd or 0)] for i, s in enumerate(statistics) if s is not None]
    return points


def _variability(group: Group) -> dict[str, Any] | None:
    values, layers = layer_variability(group), group.first.layers
    if not values or layers is None:
        return None
    return {
        "values": values,
        "shuffled": layer_variability(group, shuffled=True),
        "bottom": layers.bottom,
        "top": layers.top,
    }


def _origin(named: Sequence[NamedGroup], records: Sequence[Record]) -> dict[str, Any]:
    used = [record for item in named for record in item.group.records]
    measured_costs = (measured for item in named for measured in item.group.measured_costs)
    machines = Counter(measured.machine.hardware for measured in measured_costs for _ in measured.records)
    unfinished = Counter(record.status for record in records if record.status != "finished")
    return {
        "runs": len(used),
        "seeds": sorted({seed for item in named for seed in item.group.seeds}),
        "unfinished": dict(unfinished),
        "others": len({record.run_key for record in records if record.status == "finished"}) - len(used),
        "versions": {
            package: sorted({version for record in used if (version := record.versions.get(package))})
            for package in _SHOWN_VERSIONS
        },
        "hardware": [hardware for hardware, _ in machines.most_common() if hardware],
        "precisions": sorted({record.protocol.precision for record in used if record.protocol}),
        "commits": sorted({_commit(record.git) for record in used if record.git and record.git.get("commit")}),
    }


def _commit(git: Mapping[str, Any]) -> str:
    return str(git["commit"])[:10] + (" (changed)" if git.get("dirty") else "")


def _any(rows: list[dict[str, Any]], key: str) -> bool:
    return any(row.get(key) is not None for row in rows)


STYLES = ("page.css", "charts.css")

# The order matters: each script uses names that earlier ones define.
SCRIPTS = (
    "elements.js",
    "state.js",
    "tooltip.js",
    "chart.js",
    "plots.js",
    "table.js",
    "use.js",
    "head.js",
    "filters.js",
    "panels.js",
    "sections.js",
    "page.js",
)

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_page(data: Mapping[str, Any], file: Path) -> None:
    """Writes the page.

    Args:
        data: The data, as returned by `page_data`.
        file: The file to write.

    Raises:
        RequestError: If browsers do not open files with this ending.
        RunError: If nothing can be written there.
    """
    check_page(file)
    with atomic_write(file) as partial:
        partial.write_text(render_page(data), encoding="utf-8")


def render_page(data: Mapping[str, Any]) -> str:
    """Fills the template. Its policy only allows the script with this hash, so text in the data can never execute."""
    script = "\n".join(map(_shipped, SCRIPTS))
    slots = {
        "title": html.escape(str(data["title"])),
        "policy": _policy(script),
        "style": "\n".join(map(_shipped, STYLES)),
        "data": _embedded(data),
        "script": script,
    }
    return _SLOT.sub(lambda match: slots[match[1]], _shipped("page.html"))


def _shipped(name: str) -> str:
    return files("petl_bench.reports.page").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def _embedded(data: Mapping[str, Any]) -> str:
    """Dumps JSON without characters that could end the element around it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
