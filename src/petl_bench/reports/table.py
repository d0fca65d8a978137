"""The comparison table: methods down, scores and costs across; one format a function."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

from petl_bench.reports.columns import MISSING, Column, measured_columns
from petl_bench.reports.groups import Group, Statistic


@dataclass(frozen=True)
class ReportTable:
    """Rows of text cells under a header, with notes that say what the columns mean.

    Columns named in `prose` hold sentences: they are aligned to the left, and wrapped where a line has an end.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    prose: tuple[str, ...] = ()


def comparison_tables(groups: list[Group]) -> list[ReportTable]:
    """One table a backbone: a row a method, a column a task's primary metric, then the costs.

    Scores are in percent. Costs are those of the first task's runs where the tasks differ.
    """
    return [
        _table(name, [group for group in groups if group.backbone == name]) for name in _ordered(groups, "backbone")
    ]


def _table(backbone: str, groups: list[Group]) -> ReportTable:
    tasks = _ordered(groups, "task")
    measured = measured_columns(groups)
    metrics = {task: next(group.metric for group in groups if group.task == task) for task in tasks}
    header = ["method", "seeds", "method params", "head params", "% of backbone"]
    header += [f"{task} {_short(metrics[task])}" for task in tasks]
    header += ["train s", "train ex/s", *(column.name for column in measured)]
    rows = []
    for label in _by_size(groups):
        mine = {group.task: group for group in groups if group.label == label}
        first = next(iter(mine.values()))
        assert first.first.params
        params = first.first.params
        rows.append(
            [
                label,
                _counts(mine),
                f"{params.trainable_method:,}",
                f"{params.trainable_head:,}",
                f"{params.trainable_share_of_backbone_percent:.3f}",
                *(_score(mine[task]) if task in mine else MISSING for task in tasks),
                _total([group.statistic("time", "train_seconds") for group in mine.values()]),
                _plain(first.statistic("time", "train_examples_per_second")),
                *(column.cell([group.statistic(*column.path) for group in mine.values()]) for column in measured),
            ]
        )
    return ReportTable(f"{backbone}: mean ± sd over seeds", header, rows, _notes(groups, measured))


def _notes(groups: list[Group], measured: list[Column]) -> list[str]:
    protocols = []
    for group in groups:
        protocol = group.first.protocol
        assert protocol
        line = (
            f"{group.task}: {protocol.num_train_examples:,} training rows, scored on "
            f"{protocol.num_eval_examples:,} rows of {protocol.report_split}, {protocol.selection} checkpoint by "
            f"{protocol.metric} on {protocol.selection_split}"
        )
        if line not in protocols:
            protocols.append(line)
    return [
        *protocols,
        "scores in percent, errors (lower is better) as they are",
        "% of backbone: trained parameters, head included, over the encoder's (head excluded)",
        "train s: evaluation excluded, summed over the tasks shown",
        *(f"{column.name}: {column.note}" for column in measured),
    ]


def to_markdown(table: ReportTable) -> str:
    """GitHub Markdown."""
    lines = [
        f"**{table.title}**",
        "",
        _markdown_row(table.header),
        _markdown_row(["---"] + ["---" if name in table.prose else "---:" for name in table.header[1:]]),
    ]
    lines += [_markdown_row(row) for row in table.rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)])


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_latex(table: ReportTable) -> str:
    """A booktabs table."""
    body = [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.title)}. {_latex('; '.join(table.notes))}.}}",
            rf"\begin{{tabular}}{{{_latex_columns(table)}}}",
            r"\toprule",
            " & ".join(map(_latex, table.header)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_columns(table: ReportTable) -> str:
    plain = "l" + "r" * (len(table.header) - 1)
    wide = rf"p{{{0.8 / max(len(table.prose), 1):.2f}\linewidth}}"
    return "".join(wide if name in table.prose else form for name, form in zip(table.header, plain, strict=True))


def _latex(text: str) -> str:
    escaped = text.replace("\\", r"\textbackslash{}")
    for character in "&%$#_{}":
        if character not in "{}" or "\\textbackslash" not in escaped:
            escaped = escaped.replace(character, "\\" + character)
    return escaped.replace("±", r"$\pm$").replace("<", r"$<$").replace(">", r"$>$")


def long_rows(groups: list[Group]) -> list[dict[str, Any]]:
    """One mapping a group and metric, for csv and json: nothing is rounded, nothing left out."""
    rows = []
    for group in groups:
        assert group.first.params
        assert group.first.protocol
        shared = {
            "task": group.task,
            "backbone": group.backbone,
            "method": group.label,
            "seeds": group.seeds,
            "params_trainable": group.first.params.trainable,
            "params_trainable_method": group.first.params.trainable_method,
            "params_trainable_head": group.first.params.trainable_head,
            "params_trainable_share_of_backbone_percent": group.first.params.trainable_share_of_backbone_percent,
            "stored_bytes": group.first.params.stored_bytes,
            "num_train_examples": group.first.protocol.num_train_examples,
            "num_eval_examples": group.first.protocol.num_eval_examples,
            "selection_split": group.first.protocol.selection_split,
            "report_split": group.first.protocol.report_split,
            **_mean("train_seconds", group.statistic("time", "train_seconds")),
            **_mean("train_examples_per_second", group.statistic("time", "train_examples_per_second")),
            **_mean("process_peak_rss_bytes", group.statistic("memory", "process_peak_rss_bytes")),
            **_mean("ledger_peak_bytes", group.statistic("memory", "ledger", "peak_bytes")),
            **_mean("train_step_flops", group.statistic("flops", "train_step_flops")),
            **_mean("inference_flops", group.statistic("flops", "inference_flops")),
            **_mean("inference_latency_ms", group.statistic("inference", "latency_ms_median")),
            **_mean("inference_examples_per_second", group.statistic("inference", "examples_per_second")),
            **_mean("train_tokens_per_second", group.statistic("time", "train_tokens_per_second")),
            **_mean("padding_share", group.statistic("time", "padding_share")),
            **_mean("train_peak_allocated_bytes", group.statistic("memory", "device", "train_peak_allocated_bytes")),
        }
        for metric in group.metrics():
            score = group.score(metric)
            rows.append(
                shared
                | {"metric": metric, "primary": metric == group.metric, "n": score.n if score else 0}
                | {"score_mean": score.mean if score else None, "score_sd": score.sd if score else None}
            )
    return rows


def to_csv(groups: list[Group]) -> str:
    """Comma-separated values, one line a group and metric."""
    rows = long_rows(groups)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "seeds": " ".join(map(str, row["seeds"]))} for row in rows)
    return stream.getvalue().rstrip("\n")


def to_json(groups: list[Group]) -> str:
    """A JSON list, one object a group and metric."""
    return json.dumps(long_rows(groups), indent=2)


def _mean(name: str, statistic: Statistic | None) -> dict[str, float | None]:
    return {f"{name}_mean": None if statistic is None else statistic.mean}


def _ordered(groups: list[Group], attribute: str) -> list[str]:
    return list(dict.fromkeys(getattr(group, attribute) for group in groups))


def _by_size(groups: list[Group]) -> list[str]:
    """Row labels, fewest trained parameters first."""
    sizes: dict[str, int] = {}
    for group in groups:
        assert group.first.params
        sizes.setdefault(group.label, group.first.params.trainable)
    return sorted(sizes, key=lambda label: (sizes[label], label))


def _counts(mine: dict[str, Group]) -> str:
    counts = sorted({len(group.records) for group in mine.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _score(group: Group) -> str:
    """The primary metric in percent; an error, which is no share of anything, as it is."""
    statistic = group.score()
    if statistic is None:
        return MISSING
    scale, digits = (100, 1) if group.in_percent else (1, 4)
    spread = "" if statistic.sd is None else f" ± {scale * statistic.sd:.{digits}f}"
    return f"{scale * statistic.mean:.{digits}f}{spread}"


def _plain(statistic: Statistic | None) -> str:
    return MISSING if statistic is None else f"{statistic.mean:,.0f}"


def _total(statistics: list[Statistic | None]) -> str:
    known = [statistic.mean for statistic in statistics if statistic is not None]
    return f"{sum(known):,.0f}" if known else MISSING


def _short(metric: str) -> str:
    return {"accuracy": "acc", "matthews_correlation": "mcc"}.get(metric, metric)
