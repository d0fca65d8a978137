"""The columns of what was measured: where the record has it, in what unit it is shown, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

from petl_bench.reports.groups import Group, Statistic

MISSING = "-"
MIB = 2**20


@dataclass(frozen=True)
class Column:
    """A measured number: where the record has it, in what unit it is shown, and what it means."""

    name: str
    path: tuple[str, ...]
    unit: float
    digits: int
    note: str

    def cell(self, statistics: list[Statistic | None]) -> str:
        """The highest of the tasks' means."""
        known = [statistic.mean for statistic in statistics if statistic is not None]
        return f"{max(known) / self.unit:,.{self.digits}f}" if known else MISSING


_COLUMNS = (
    Column(
        "trunk s",
        ("time", "trunk_seconds"),
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
        "ledger MiB",
        ("memory", "ledger", "peak_bytes"),
        MIB,
        0,
        "peak of one update of full-length rows, counted storage by storage",
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
    ),
)
_PROCESS = Column(
    "peak process MiB",
    ("memory", "process_peak_rss_bytes"),
    MIB,
    0,
    "highest resident set of the whole process, interpreter and libraries included",
)


def measured_columns(groups: list[Group]) -> list[Column]:
    """The columns of what was measured in these runs; the process's memory only where nothing better was."""
    there = [column for column in _COLUMNS if any(group.statistic(*column.path) for group in groups)]
    memory = any(column.path[0] == "memory" for column in there)
    return there if memory else [*there, _PROCESS]
