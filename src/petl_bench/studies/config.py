"""The schema of a study; conf/study/*.yaml hold the values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from petl_bench.records.study_file import Claim, PublishedRow


@dataclass
class CellConfig:
    """Settings of one method on one task, both by the study's names; `tasks` and `methods` that are empty mean all."""

    methods: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)


@dataclass
class StudyConfig:
    """A grid of methods, tasks and seeds. Settings are words as `petl-bench run` takes them.

    Where several words set the same key, the later wins: `settings`, then the method's, the task's, those of `cells`,
    and what stands on the command line.

    Attributes:
        settings: For every run.
        methods: By the name that tables show; no word of its own means `method=<name>`.
        tasks: By the name that tables show; no word of its own means `task=<name>`.
        seeds: One run each.
        cells: Settings per (method, task).
        learning_rates: By method: rates of which the best on the selection split is taken, task by task.
        rate_seeds: Seeds with which rates are compared; the other seeds run with the rate that was taken.
        deviations: In what the study departs from the papers it is held against.
        published: Rows of papers' tables.
        claims: Sentences of papers, as tests over the records.
    """

    description: str = ""
    settings: list[str] = field(default_factory=list)
    methods: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    cells: list[CellConfig] = field(default_factory=list)
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    rate_seeds: list[int] = field(default_factory=lambda: [0])
    deviations: list[str] = field(default_factory=list)
    published: list[PublishedRow] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)


@dataclass
class ExecutorConfig:
    """How a study's worker processes are started; conf/executor/*.yaml say what each setting means."""

    name: str = "local"
    workers: int | None = None
    runs_per_gpu: int = 1
    cluster: str = "slurm"
    submitit: dict[str, Any] = field(default_factory=dict)
    address: str | None = None
