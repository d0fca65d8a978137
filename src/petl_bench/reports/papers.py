"""Paper comparison: rows of published tables next to the results of a study, and the claims of papers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PublishedRow, StudyFile
from petl_bench.reports.claims import TOO_FEW, claim_rows, claims_table
from petl_bench.reports.fields import MISSING, short_metric
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import StudyRecords, in_points, score_of
from petl_bench.reports.significance import Statistic

NOT_RUN = "not run"

WITHIN = "within our 95 % interval"

OUTSIDE = "outside our 95 % interval"


def published_rows(study: StudyFile, records: Iterable[Record]) -> list[dict[str, Any]]:
    """Makes one mapping per published value.

    All values are in percentage points. `verdict` is None if the two are not comparable. Otherwise it says whether the
    published value lies within the 95 % interval of our mean, which needs at least three seeds.
    """
    ours = StudyRecords(study, records)
    return [
        _row(published, task, cell, ours) for published in study.published for task, cell in published.cells.items()
    ]


def _row(published: PublishedRow, task: str, cell: list[float], ours: StudyRecords) -> dict[str, Any]:
    metric = published.metrics.get(task) or ours.primary_metric(task)
    statistic = _ours(published.method, task, metric, ours)
    mean, sd = (statistic.mean, statistic.sd) if statistic else (None, None)
    return {
        "row": published.row,
        "source": published.source,
        "task": task,
        "metric": metric,
        "value": cell[0],
        "sd": cell[1] if len(cell) > 1 else None,
        "ours_mean": mean,
        "ours_sd": sd,
        "n": statistic.n if statistic else 0,
        "difference": None if mean is None else mean - cell[0],
        "comparable": published.comparable,
        "why": published.why,
        "verdict": _verdict(cell[0], statistic) if published.comparable else None,
        "method": published.method,
        "statistic": published.statistic,
        "split": published.split,
        "params": published.params,
        "ours_params": _params(published.method, task, ours),
        "average": published.average,
    }


def _ours(method: str | None, task: str, metric: str | None, ours: StudyRecords) -> Statistic | None:
    if method is None or metric is None:
        return None
    scores = [score_of(record, metric) for record in ours.by_seed(method, task).values()]
    return Statistic.of(None if score is None else in_points(metric, score) for score in scores)


def _verdict(value: float, statistic: Statistic | None) -> str:
    if statistic is None:
        return NOT_RUN
    interval = statistic.interval()
    if interval is None:
        return TOO_FEW
    return WITHIN if interval[0] <= value <= interval[1] else OUTSIDE


def _params(method: str | None, task: str, ours: StudyRecords) -> dict[str, int | None] | None:
    """Trained parameters of the runs, or the planned ones if none has finished."""
    if method is None:
        return None
    for record in ours.by_seed(method, task).values():
        assert record.params
        return {"method": record.params.trainable_method, "head": record.params.trainable_head}
    costs = ours.costs(method, task)
    if costs is None or costs.trainable_method is None:
        return None
    return {"method": costs.trainable_method, "head": costs.trainable_head}


def published_table(study: StudyFile, records: Iterable[Record]) -> ReportTable | None:
    """Makes the table of published rows, with sources and deviations as notes; None if the study names none."""
    rows = published_rows(study, records)
    if not rows:
        return None
    header = ["published row", "task", "metric", "published", "ours", "n", "difference", "params", "our params"]
    header += ["comparable", "published value is"]
    first_columns = (
        "published row",
        "task",
        "published",
        "ours",
        "difference",
        "published value is",
        "comparable",
        "n",
    )
    priority = tuple((name,) for name in (*first_columns, "metric"))
    title = f"{study.name}: published and reproduced"
    return ReportTable(title, header, list(map(_cells, rows)), _notes(study), priority=priority)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["row"],
        row["task"],
        row["metric"] or "primary",
        _spread(row["value"], row["sd"]),
        MISSING if row["ours_mean"] is None else _spread(round(row["ours_mean"], 1), row["ours_sd"], digits=1),
        str(row["n"]),
        MISSING if row["difference"] is None else f"{row['difference']:+.1f}",
        row["params"] or MISSING,
        _count(row["ours_params"]),
        "yes" if row["comparable"] else "no",
        row["verdict"] or MISSING,
    ]


def _spread(value: float, sd: float | None, digits: int | None = None) -> str:
    """Formats value and spread with the paper's number of digits unless `digits` is given."""
    if digits is None:
        return f"{float(value)}" if sd is None else f"{float(value)} ± {float(sd)}"
    return f"{value:.{digits}f}" if sd is None else f"{value:.{digits}f} ± {sd:.{digits}f}"


def _count(params: dict[str, int | None] | None) -> str:
    if params is None:
        return MISSING
    return f"{params['method']:,}" + (f" + {params['head']:,}" if params["head"] is not None else "")


def _notes(study: StudyFile) -> list[str]:
    notes = [_origin(row) for row in study.published]
    return [
        *dict.fromkeys(notes),
        "ours: mean ± sd over n seeds, in percent; our params: the method's + the head's",
        "published value is: within or outside the 95 % t interval of our mean, from three seeds on; no verdict for "
        "rows that are not comparable",
        *(f"deviation: {deviation}" for deviation in study.deviations),
    ]


def _origin(row: PublishedRow) -> str:
    parts = [row.source, row.statistic, row.split]
    if row.average is not None:
        parts.append(f"average in the paper {float(row.average)}")
    reason = "comparable" if row.comparable else "not comparable"
    return f"{row.row}: {', '.join(part for part in parts if part)}; {reason}" + (f": {row.why}" if row.why else "")


def paper_tables(study: StudyFile, records: Iterable[Record]) -> list[ReportTable]:
    """Makes a table in each source's layout (rows, task order); each cell shows our value next to the published one."""
    rows = published_rows(study, records)
    sources = dict.fromkeys(row["source"] for row in rows)
    return [_paper_table(study, source, [row for row in rows if row["source"] == source]) for source in sources]


def _paper_table(study: StudyFile, source: str, rows: list[dict[str, Any]]) -> ReportTable:
    # A source may report two metrics for a task.
    columns = dict.fromkeys((row["task"], row["metric"]) for row in rows)
    names = dict.fromkeys(row["row"] for row in rows)
    with_average = any(row["average"] is not None for row in rows)
    shown = []
    for name in names:
        cells = {(row["task"], row["metric"]): row for row in rows if row["row"] == name}
        average = next(iter(cells.values()))["average"]
        averages = [MISSING if average is None else f"({float(average)})"] if with_average else []
        shown.append([name, *(_paper_cell(cells.get(column)) for column in columns), *averages])
    header = ["method", *(f"{task} {short_metric(metric)}" for task, metric in columns)]
    header += ["average"] if with_average else []
    seeds = sorted({row["n"] for row in rows if row["n"]})
    notes = [
        "a cell: ours (published), in percent; ours: "
        + (f"mean ± sd over {_span(seeds)} seeds" if seeds else "no run has finished"),
        *(["* not comparable with ours, for the reason given below"] if not all(r["comparable"] for r in rows) else []),
        *(["average: the source's own; ours is not averaged"] if with_average else []),
        *dict.fromkeys(_origin(row) for row in study.published if row.source == source),
        *(f"deviation: {deviation}" for deviation in study.deviations),
    ]
    return ReportTable(f"{study.name}: {source}", header, shown, notes)


def _paper_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return MISSING
    mean = row["ours_mean"]
    ours = MISSING if mean is None else _spread(round(mean, 1), row["ours_sd"], digits=1)
    return f"{ours} ({_spread(row['value'], row['sd'])}){'' if row['comparable'] else '*'}"


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]}" if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"


def study_tables(studies: list[tuple[StudyFile, list[Record]]]) -> list[ReportTable]:
    """Makes the tables of published rows and claims of all studies that have them."""
    tables = [make(study, records) for study, records in studies for make in (published_table, claims_table)]
    return [table for table in tables if table is not None]


def study_json(studies: list[tuple[StudyFile, list[Record]]]) -> dict[str, Any]:
    """Collects published rows, claims and deviations of all studies for JSON, unrounded."""
    return {
        "published": [
            {"study": study.name} | row for study, records in studies for row in published_rows(study, records)
        ],
        "claims": [{"study": study.name} | row for study, records in studies for row in claim_rows(study, records)],
        "deviations": {study.name: study.deviations for study, _ in studies},
    }
