"""The fields of a record that reports show: where each is, its unit, its digits, what it means."""

from __future__ import annotations

from dataclasses import dataclass

from petl_bench.reports.results_table import Cell, ResultsTable

MISSING = "-"

MIB = 2**20


@dataclass(frozen=True)
class Column:
    """A measured number: where the record has it, in what unit it is shown, and what it means.

    Attributes:
        planned: The field of `PlannedCosts` that holds the same, counted before the run.
        more_is_better: Whether it is a speed, of which the lowest is the costliest.
    """

    name: str
    path: tuple[str, ...]
    unit: float
    digits: int
    note: str
    planned: str | None = None
    more_is_better: bool = False

    def cell(self, cells: list[Cell]) -> str:
        """The costliest of the tasks' means; what was planned where nothing has finished."""
        found = [cell.group.statistic(*self.path) for cell in cells if cell.group]
        known = [statistic.mean for statistic in found if statistic is not None]
        if not any(cell.group for cell in cells):
            known = self._counted(cells)
        if not known:
            return MISSING
        costliest = min(known) if self.more_is_better else max(known)
        return f"{costliest / self.unit:,.{self.digits}f}"

    def is_known(self, cells: list[Cell]) -> bool:
        """Whether any of these cells has the number."""
        measured = any(cell.group is not None and cell.group.statistic(*self.path) for cell in cells)
        return measured or bool(self._counted(cells))

    def _counted(self, cells: list[Cell]) -> list[float]:
        if self.planned is None:
            return []
        counted = [getattr(cell.costs, self.planned) for cell in cells if cell.costs]
        return [number for number in counted if number is not None]


_COLUMNS = (
    Column(
        "features s",
        ("time", "features_seconds"),
        1,
        1,
        "computing the states of frozen layers before training, or finding them; not in train s",
    ),
    Column(
        "peak device MiB",
        ("memory", "device", "train_peak_allocated_bytes"),
        MIB,
        0,
        "most bytes that the CUDA allocator held while training, the first updates left out",
    ),
    Column(
        "estimated MiB",
        ("memory", "estimate", "peak_bytes"),
        MIB,
        0,
        "peak of one update of full-length rows, counted storage by storage",
        planned="peak_bytes",
    ),
    Column(
        "step GFLOP",
        ("flops", "train_step_flops"),
        1e9,
        0,
        "matrix products and attention of that update, a multiply-add as two",
    ),
    Column(
        "infer ms",
        ("inference", "latency_ms_median"),
        1,
        1,
        "median time of one full-length row, adapter merged where the method can",
    ),
    Column(
        "infer ex/s",
        ("inference", "examples_per_second"),
        1,
        0,
        "median throughput at 32 such rows",
        more_is_better=True,
    ),
)

_PROCESS = Column(
    "peak process MiB",
    ("memory", "process_peak_rss_bytes"),
    MIB,
    0,
    "highest resident set of the whole process, interpreter and libraries included",
)

SPEED = Column(
    "train ex/s",
    ("time", "train_examples_per_second"),
    1,
    0,
    "without evaluations and the first updates",
    more_is_better=True,
)


def measured_columns(results: ResultsTable) -> list[Column]:
    """The columns of what was measured in these runs; the process's memory only where nothing better was."""
    cells = list(results.cells.values())
    there = [column for column in _COLUMNS if column.is_known(cells)]
    memory = any(column.path[0] == "memory" for column in there)
    return [*there, _PROCESS] if not memory and _PROCESS.is_known(cells) else there


# Where a record has it, and the unit it is shown in.
MEASURED: dict[str, tuple[tuple[str, ...], float]] = {
    "train_s": (("time", "train_seconds"), 1),
    "train_eps": (("time", "train_examples_per_second"), 1),
    "estimate": (("memory", "estimate", "peak_bytes"), MIB),
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
        "estimate", "estimated MiB", "peak of one update of full-length rows, counted storage by storage", always=False
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
    PageAxis("estimate", "peak memory of an update estimated, MiB"),
    PageAxis("device", "peak device memory, MiB"),
    PageAxis("process", "peak resident memory of the process, MiB"),
    PageAxis("train_s", "training time, s"),
    PageAxis("infer_eps", "inference, examples/s (more is better)", less_is_better=False),
)
