"""The columns of the page's table and the axes of its plots, with what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from petl_bench.reports.tables.columns import MIB

# Where a record has it, and the unit it is shown in.
MEASURED: dict[str, tuple[tuple[str, ...], float]] = {
    "train_s": (("time", "train_seconds"), 1),
    "train_eps": (("time", "train_examples_per_second"), 1),
    "ledger": (("memory", "ledger", "peak_bytes"), MIB),
    "device": (("memory", "device", "train_peak_allocated_bytes"), MIB),
    "process": (("memory", "process_peak_rss_bytes"), MIB),
    "gflop": (("flops", "train_step_flops"), 1e9),
    "infer_ms": (("inference", "latency_ms_median"), 1),
    "infer_eps": (("inference", "examples_per_second"), 1),
}


@dataclass(frozen=True)
class PageColumn:
    """A column of the page's table.

    Attributes:
        kind: How the page writes it: `text`, `number`, or `score`, whose digits follow the metric.
        always: Whether it is there where no row has a number.
    """

    key: str
    name: str
    note: str
    kind: str = "number"
    digits: int = 0
    always: bool = True


@dataclass(frozen=True)
class PageAxis:
    """A cost that the page draws scores against."""

    key: str
    name: str
    log: bool = False
    less_is_better: bool = True


COLUMNS = (
    PageColumn("method", "method", "the method, and what tells it from its variants", "text"),
    PageColumn("task", "task", "the task", "text"),
    PageColumn("backbone", "backbone", "the pretrained encoder", "text"),
    PageColumn("rows", "train rows", "rows trained on"),
    PageColumn("n", "seeds", "runs that differ in their seed alone"),
    PageColumn(
        "score",
        "score ± sd",
        "the primary metric on the report split, mean over seeds and sample standard deviation (n - 1); in percent, "
        "errors (lower is better) as they are",
        "score",
    ),
    PageColumn("median", "median", "median over seeds", "score"),
    PageColumn("low", "95 % interval", "bootstrap 95 % interval of the mean over seeds", "score", always=False),
    PageColumn("method_params", "method params", "trained parameters without the head"),
    PageColumn("head_params", "head params", "trained parameters of the head"),
    PageColumn("share", "% of backbone", "trained parameters, head included, over the encoder's", digits=3),
    PageColumn("train_s", "train s", "time of the updates, evaluation excluded, mean over seeds", digits=1),
    PageColumn("train_eps", "train ex/s", "rows trained on a second, the first updates left out"),
    PageColumn(
        "ledger", "ledger MiB", "peak of one update of full-length rows, counted storage by storage", always=False
    ),
    PageColumn("device", "device MiB", "most bytes that the CUDA allocator held while training", always=False),
    PageColumn("gflop", "step GFLOP", "matrix products and attention of one update", digits=1, always=False),
    PageColumn(
        "infer_ms", "infer ms", "median time of one full-length row, adapter merged where it can be", digits=1,
        always=False,
    ),
    PageColumn("infer_eps", "infer ex/s", "median throughput at the inference batch size", always=False),
)  # fmt: skip

AXES = (
    PageAxis("params", "trained parameters, head included", log=True),
    PageAxis("ledger", "peak memory of an update by the ledger, MiB"),
    PageAxis("device", "peak device memory, MiB"),
    PageAxis("process", "peak resident memory of the process, MiB"),
    PageAxis("train_s", "training time, s"),
    PageAxis("infer_eps", "inference, examples/s (more is better)", less_is_better=False),
)
