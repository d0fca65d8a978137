"""The machines that records were measured on.

Times, device memory and speed depend on the machine. They are averaged only over records of the same machine and cache
mode; every report names the machine of its costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from petl_bench.records.schema import Record
from petl_bench.reports.fields import Field
from petl_bench.reports.significance import Statistic


@dataclass(frozen=True)
class Machine:
    """What measured costs depend on besides a run's settings; None for values that the record lacks.

    Attributes:
        device: Name of the CUDA device; None for a run on the CPU.
        processor: Name of the CPU.
        threads: Number of CPU threads that torch uses.
        processes: Number of processes that shared the run.
        torch: Version of torch.
        precision: Precision of the run, e.g. `fp32`.
    """

    device: str | None
    processor: str | None
    threads: int | None
    processes: int
    torch: str | None
    precision: str | None

    @classmethod
    def of(cls, record: Record) -> Machine:
        """The machine of a record."""
        hardware = record.hardware
        return cls(
            device=hardware.get("device"),
            processor=hardware.get("processor"),
            threads=hardware.get("torch_threads"),
            processes=hardware.get("num_processes", 1),
            torch=record.versions.get("torch"),
            precision=record.protocol.precision if record.protocol else None,
        )

    @property
    def hardware(self) -> str:
        """Device, processor, threads and processes, as far as the record has them."""
        threads = None if self.threads is None else f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        processes = f"{self.processes} processes" if self.processes > 1 else None
        return ", ".join(filter(None, (self.device, self.processor, threads, processes)))

    @property
    def name(self) -> str:
        """The hardware with torch's version and the precision."""
        torch = None if self.torch is None else f"torch {self.torch}"
        return ", ".join(filter(None, (self.hardware or "unknown machine", torch, self.precision)))


@dataclass(frozen=True)
class MeasuredCosts:
    """Records of one method on one task whose costs may be averaged.

    Attributes:
        machine: The machine that measured them.
        cache: Where the features of the frozen layers were cached, one of `CACHE_PLACES`; None without frozen layers.
        records: One per seed.
    """

    machine: Machine
    cache: str | None
    records: tuple[Record, ...]

    def mean(self, field: Field) -> float | None:
        """The mean of a number over the seeds; None if no run measured it."""
        statistic = Statistic.of(field.value(record) for record in self.records)
        return statistic.mean if statistic else None


def newest_last(records: Iterable[Record]) -> list[Record]:
    """Sorts records by end time. Older records without an end time come first, in their original order."""
    return sorted(records, key=lambda record: (record.ended_at or "", record.key_version or 0))


def by_machine(records: Iterable[Record]) -> list[MeasuredCosts]:
    """Groups records of one method on one task by machine and cache mode; those with the most records come first.

    If a seed has several records, the newest one counts.
    """
    by_place: dict[tuple[Machine, str | None], dict[int | None, Record]] = {}
    for record in newest_last(records):
        cache = record.frozen.cache if record.frozen else None
        seed = record.protocol.seed if record.protocol else None
        by_place.setdefault((Machine.of(record), cache), {})[seed] = record
    costs = [MeasuredCosts(*where, tuple(by_seed.values())) for where, by_seed in by_place.items()]
    return sorted(costs, key=lambda measured: (-len(measured.records), measured.machine.name, measured.cache or ""))


def machines_of(costs: Iterable[MeasuredCosts]) -> list[Machine]:
    """The machines of these costs, those with the most records first."""
    counts: Counter[Machine] = Counter()
    for measured in costs:
        counts[measured.machine] += len(measured.records)
    return sorted(counts, key=lambda machine: (-counts[machine], machine.name))


def cost_statistic(field: Field, costs: Sequence[MeasuredCosts], machine: Machine | None = None) -> Statistic | None:
    """Describes a cost of one method on one task over the seeds.

    Args:
        field: A number that depends on the machine.
        costs: As returned by `by_machine`.
        machine: The machine whose runs count. None stands for the only one.

    Returns:
        None if no run measured it there, or if several machines or cache modes did and none is named. If the named
        machine has several cache modes, the one with the most records is described.
    """
    chosen = list(costs) if machine is None else [measured for measured in costs if measured.machine == machine][:1]
    if len(chosen) != 1:
        return None
    return Statistic.of(field.value(record) for record in chosen[0].records)


def means_on_one_machine(field: Field, first: Iterable[Record], second: Iterable[Record]) -> tuple[float, float] | None:
    """The means of a cost over two methods' records on the machine with the most records of both.

    Returns:
        None if no machine measured both.
    """
    costs = by_machine(first), by_machine(second)
    for machine in machines_of(chain(*costs)):
        statistics = [cost_statistic(field, of_method, machine) for of_method in costs]
        if statistics[0] and statistics[1]:
            return statistics[0].mean, statistics[1].mean
    return None
