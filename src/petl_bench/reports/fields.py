"""The numbers of a record that reports show, each declared once.

A number's place in the record, its unit, its name and its definition are in `FIELDS` and nowhere else. Columns of
tables and of the HTML page, CSV and JSON columns, axes of plots, the quantities of claims and the dashboards select
from it by key. A new report column is one entry of `FIELDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from petl_bench.records import FPR_RULE, OOD_SCORES
from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedCosts

MISSING = "-"

MIB = 2**20


def is_error(metric: str) -> bool:
    """Whether a metric is an error: lower is better, and it is not shown in percent."""
    return metric.endswith("_error")


def score_text(value: float, *, in_percent: bool, sign: bool = False) -> str:
    """Formats a score, or a difference of scores, as all tables, pages and messages do: in percent, or as an error.

    Args:
        value: A fraction, a correlation or an error.
        in_percent: False for an error.
        sign: Whether positive values get a plus sign.
    """
    shown, digits = (100 * value, 1) if in_percent else (value, 4)
    return f"{shown:{'+' if sign else ''}.{digits}f}"


def shown_score(metric: str, value: float) -> str:
    """A metric with its value, e.g. `accuracy 81.3 %`."""
    error = is_error(metric)
    return f"{metric} {score_text(value, in_percent=not error)}{'' if error else ' %'}"


_SHORT = {"accuracy": "acc", "matthews_correlation": "mcc"}


def short_metric(metric: str | None) -> str:
    """The metric's name in a column heading; None stands for a primary metric that is unknown until a run finishes."""
    return "primary" if metric is None else _SHORT.get(metric, metric)


FieldKind = Literal["parameters", "time", "memory", "operations", "score"]


@dataclass(frozen=True)
class Field:
    """One number of a record.

    Attributes:
        key: Its name in CSV, in JSON and in the data of the HTML page.
        path: The attribute path from a `Record` to it, joined by dots.
        name: The heading of its column, unit included.
        definition: One line for the notes below a table.
        kind: What is measured.
        unit: The number of the record's units in one displayed unit, e.g. `MIB`.
        digits: The number of decimals shown.
        higher_is_better: True for speeds.
        planned: Attributes of `PlannedCosts` whose sum is the planned value of this number; empty if there is none.
        axis: The name of its axis in plots, unit included; empty if it has no axis.
        log_axis: Whether that axis is logarithmic.
        counted: Whether a time or memory is the same on every machine because it is an estimate or a share.
        over_tasks: How a table combines the numbers of several tasks: the costliest of them, their sum, or each
            distinct one.
        always: Whether its column is shown even if no run has the number.
        table: Whether it is a column of the results table.
        page: Whether it is a column of the HTML page's table.
        export: Whether CSV and JSON contain it.
    """

    key: str
    path: str
    name: str
    definition: str
    kind: FieldKind
    unit: float = 1
    digits: int = 0
    higher_is_better: bool = False
    planned: tuple[str, ...] = ()
    axis: str = ""
    log_axis: bool = False
    counted: bool = False
    over_tasks: Literal["costliest", "sum", "each"] = "costliest"
    always: bool = False
    table: bool = True
    page: bool = True
    export: bool = True

    @property
    def depends_on_machine(self) -> bool:
        """Whether it may be averaged only over records of the same machine."""
        return self.kind in ("time", "memory") and not self.counted

    @property
    def depends_on_batch(self) -> bool:
        """Whether it is meaningful only together with the number of rows per update."""
        return self.kind == "memory"

    def value(self, record: Record) -> Any:
        """The number in the record's unit; None if it was not measured."""
        value: Any = record
        for name in self.path.split("."):
            value = getattr(value, name, None)
        return value

    def planned_value(self, costs: PlannedCosts | None) -> Any:
        """The number that `petl-bench plan` computed, in the record's unit; None if it computed none."""
        values = [getattr(costs, name, None) for name in self.planned]
        return None if not values or None in values else sum(values)

    def text(self, value: float | None) -> str:
        """A value in the record's unit as a cell of a table."""
        return MISSING if value is None else f"{value / self.unit:,.{self.digits}f}"

    @property
    def axis_label(self) -> str:
        """The name of its axis in plots, with the direction if higher is better."""
        return self.axis + (" (more is better)" if self.higher_is_better else "")

    @property
    def tracker_key(self) -> str:
        """Its name in W&B and TensorBoard."""
        return self.path.replace(".", "/")


def _by_key(*fields: Field) -> dict[str, Field]:
    return {field.key: field for field in fields}


# The figures of an out-of-distribution score, by the names in `petl_bench.records.predictions.OodScore`.
OOD_FIGURES = {
    "auroc": ("AUROC", "how often a report row scores higher than a row out of distribution, in percent"),
    "fpr95": ("FPR@95", f"percent of {FPR_RULE}"),
    "aupr_in": ("AUPR in", "average precision in percent, report rows positive"),
    "aupr_out": ("AUPR out", "average precision in percent, rows out of distribution positive"),
}


def _ood_fields() -> list[Field]:
    return [
        Field(
            f"ood_{figure}_{score}", f"ood.{score}.{figure}", f"{name} {score}", f"{definition}; by {explanation}",
            "score", unit=0.01, digits=1, higher_is_better=figure != "fpr95", table=False,
        )
        for figure, (name, definition) in OOD_FIGURES.items()
        for score, explanation in OOD_SCORES.items()
    ]  # fmt: skip


FIELDS = _by_key(
    Field(
        "params_trainable", "params.trainable", "params", "trained parameters, head included", "parameters",
        planned=("trainable_method", "trainable_head"), axis="trained parameters, head included", log_axis=True,
        table=False, page=False,
    ),
    Field(
        "params_trainable_method", "params.trainable_method", "method params", "trained parameters without the head",
        "parameters", planned=("trainable_method",), always=True,
    ),
    Field(
        "params_trainable_head", "params.trainable_head", "head params", "trained parameters of the head",
        "parameters", planned=("trainable_head",), always=True,
    ),
    Field(
        "params_trainable_share_of_backbone_percent", "params.trainable_share_of_backbone_percent", "% of backbone",
        "trained parameters, head included, over the encoder's (head excluded)", "parameters", digits=3,
        planned=("trainable_share_of_backbone_percent",), always=True,
    ),
    Field(
        "stored_bytes", "params.stored_bytes", "stored MiB", "size of the saved weights", "parameters", unit=MIB,
        digits=1, table=False, page=False,
    ),
    Field(
        "train_seconds", "time.train_seconds", "train s", "time of the updates, evaluation excluded", "time",
        axis="training time, s", over_tasks="sum",
    ),
    Field(
        "train_examples_per_second", "time.train_examples_per_second", "train ex/s",
        "rows trained on per second, without evaluations, the first updates and compiling", "time",
        higher_is_better=True,
    ),
    Field(
        "train_tokens_per_second", "time.train_tokens_per_second", "train tok/s",
        "tokens trained on per second, without evaluations, the first updates and compiling", "time",
        higher_is_better=True, table=False, page=False,
    ),
    Field(
        "padding_share", "time.padding_share", "padding", "share of the tokens that pad", "time", digits=3,
        counted=True, table=False, page=False,
    ),
    Field(
        "features_seconds", "time.features_seconds", "features s",
        "the computation of the cached features of frozen layers, whichever run made it; not in train s",
        "time", digits=1, page=False, export=False,
    ),
    Field(
        "device_peak_bytes", "memory.device.peak_allocated_bytes", "peak device MiB",
        "most bytes that the CUDA allocator held at once, loading, features of frozen layers, training and evaluation "
        "included",
        "memory", unit=MIB, axis="device memory, MiB",
    ),
    Field(
        "estimated_peak_bytes", "memory.estimate.peak_bytes", "estimated MiB",
        "estimated peak of one update of full-length rows, counted storage by storage; weights in fp32 unless the "
        "settings give backbone.dtype", "memory", unit=MIB,
        planned=("peak_bytes",), counted=True, axis="estimated memory, MiB",
    ),
    Field(
        "process_peak_rss_bytes", "memory.process_peak_rss_bytes", "peak process MiB",
        "highest resident set of the whole process, interpreter and libraries included; of the first run that each "
        "process made",
        "memory", unit=MIB, axis="process memory, MiB", page=False,
    ),
    Field(
        "batch_size", "batch_size", "batch", "rows of one update, for which memory and operations are given",
        "operations", planned=("batch_size",), over_tasks="each", export=False,
    ),
    Field(
        "train_step_flops", "flops.train_step_flops", "step GFLOP",
        "matrix products and attention of that update, a multiply-add counted as two", "operations", unit=1e9,
    ),
    Field(
        "inference_flops", "flops.inference_flops", "inference GFLOP",
        "the same for inference on these rows, adapter merged if the method can", "operations", unit=1e9,
        table=False, page=False,
    ),
    Field(
        "inference_latency_ms", "inference.latency_ms_median", "infer ms",
        "median time of one full-length row, adapter merged if the method can", "time", digits=1,
    ),
    Field(
        "inference_examples_per_second", "inference.examples_per_second", "infer ex/s",
        "median throughput at 32 such rows", "time", higher_is_better=True, axis="inference, examples/s",
    ),
    Field(
        "best_epoch", "scores.best_epoch", "best epoch", "epoch of the best evaluation", "score", digits=1,
        table=False, page=False, export=False,
    ),
    Field(
        "updates_to_95_percent", "updates_to_95_percent", "updates to 95 %",
        "updates until the selection score first reached 95 % of that of the reported weights, interpolated between "
        "evaluations; at most the first one's; none if no better than the majority baseline",
        "score", table=False, page=False, export=False,
    ),
    *_ood_fields(),
)  # fmt: skip

# The costs that scores can be plotted against.
AXES = (
    "estimated_peak_bytes",
    "device_peak_bytes",
    "process_peak_rss_bytes",
    "params_trainable",
    "train_seconds",
    "inference_examples_per_second",
)

# The names that claims use for the numbers that they compare. They are part of the format of studies.
QUANTITIES = {
    "ledger_peak": "estimated_peak_bytes",
    "device_peak": "device_peak_bytes",
    "inference_throughput": "inference_examples_per_second",
    "train_throughput": "train_examples_per_second",
    "trainable": "params_trainable",
    "train_step_flops": "train_step_flops",
    "inference_flops": "inference_flops",
    "best_epoch": "best_epoch",
    "updates_to_95_percent": "updates_to_95_percent",
}
