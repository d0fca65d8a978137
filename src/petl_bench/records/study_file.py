"""`study.json`: the runs of a study and the published results that it is compared with; it lies next to the records.

A report reads it to know which records belong to the study, by which names, and which are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petl_bench.errors import RequestError
from petl_bench.process import name_fault
from petl_bench.records.reading import Number, check_hash, finite, validate, with_hash
from petl_bench.records.schema import Record
from petl_bench.records.store import read_json, write_json

STUDY_FILE = "study.json"
STUDY_VERSION = 1


@dataclass
class PublishedRow:
    """One row of a paper's table, as the paper prints it.

    Attributes:
        row: How the paper calls it.
        source: Paper and table.
        cells: By the study's name of the task: the value, and its spread where the paper prints one.
        method: The study's method that it is compared with; None if the row is only shown.
        metrics: By task, where the paper's metric is not the task's primary one here.
        statistic: What the values are over several seeds, e.g. `median of 5`.
        split: The rows that the paper scored on, e.g. `validation`, `test`.
        params: Trained parameters in the paper's words.
        average: The paper's own last column, never computed again.
        comparable: Whether the paper's protocol is this study's.
        why: How the two protocols differ; required if they are not comparable.
    """

    row: str
    source: str
    cells: dict[str, list[Number]]
    method: str | None = None
    metrics: dict[str, str] = field(default_factory=dict)
    statistic: str | None = None
    split: str | None = None
    params: str | None = None
    average: Number | None = None
    comparable: bool = False
    why: str | None = None


@dataclass
class Claim:
    """A sentence of a paper as a test over the study's records.

    Attributes:
        claim: The sentence.
        source: The paper, and where in it.
        test: What `petl_bench.reports.claims` is to compute; empty where nothing can be.
        untestable: Why it cannot be tested here; None where it can.
    """

    claim: str
    source: str
    test: dict[str, Any] = field(default_factory=dict)
    untestable: str | None = None


@dataclass
class PlannedRun:
    """One run of a study.

    Attributes:
        method, task: The study's names, which need not be those of the configs.
        learning_rate: The rate, if the study tries several; None for the method's own.
        is_trial: Whether the run is one of those that choose the rate.
        chosen: Whether the study reports it; False for rates that were tried and not taken, None while that is open.
        key: The run key.
        folder: The run's folder, next to this file.
        overrides: `petl-bench run` with these makes this run alone.
        cache: `train.cache` of the run, which its key leaves out: a record with times of another mode does not end it.
        tried: The settings that are compared with others of the method, by name; empty where there are no others.
        share: Of the whole training, where a trial ends early or sees fewer rows.
    """

    method: str
    task: str
    seed: int
    key: str
    folder: str
    overrides: list[str]
    learning_rate: Number | None = None
    is_trial: bool = False
    chosen: bool | None = True
    cache: str = "auto"
    tried: dict[str, Any] = field(default_factory=dict)
    share: Number = 1.0

    def __post_init__(self) -> None:
        # Older files know of rates only.
        if self.learning_rate is not None and not self.tried:
            self.tried = {"train.learning_rate": self.learning_rate}

    @property
    def candidate(self) -> str:
        """Names the settings that are tried; runs of a method and task with one name differ in their seed alone."""
        return candidate_name(self.tried)

    @property
    def is_asked_for(self) -> bool:
        """Whether it is to be made, by what is known; settings that were tried and not taken end with their trials."""
        return self.is_trial or self.chosen is not False


def selection_score(record: Record) -> float | None:
    """The score on the selection split of the weights that the protocol selects, higher is better; None: none."""
    if record.status != "finished" or record.protocol is None or not record.history:
        return None
    sign = 1.0 if record.protocol.higher_is_better else -1.0
    return sign * record.protocol.selected([entry.scores[record.protocol.metric] for entry in record.history])


def candidate_name(tried: Mapping[str, Any]) -> str:
    """One name for the same settings, whatever their order."""
    return json.dumps(tried, sort_keys=True)


@dataclass
class SearchedCell:
    """A method on a task, as a search that learns from its trials needs it.

    Attributes:
        overrides: Settings of all its runs; `last` wins over what is drawn.
        space: The range of each setting that is searched.
        steps: The lengths to which a trial is trained one after the other: share of the whole, override.
        is_open: Whether some of its trials have not ended.
    """

    method: str
    task: str
    overrides: list[str]
    last: list[str]
    space: dict[str, Any]
    steps: list[tuple[Number, str]]
    is_open: bool = True


@dataclass
class SearchPlan:
    """The search of a study, by its settings (`petl_bench.studies.search.SearchConfig`).

    Attributes:
        cells: Of a search whose trials depend on earlier ones; else empty.
    """

    trials: int
    sampler: str
    pruner: str
    seed: int
    cells: list[SearchedCell] = field(default_factory=list)


@dataclass
class PlannedCosts:
    """Parameters and memory of one method on one task, as `petl-bench plan` counts them; None if that failed."""

    method: str
    task: str
    trainable_method: int | None = None
    trainable_head: int | None = None
    trainable_share_of_backbone_percent: Number | None = None
    peak_bytes: int | None = None
    note: str | None = None
    batch_size: int | None = None


@dataclass
class StudyFile:
    """A study as it was asked for, resolved.

    Attributes:
        methods, tasks, seeds: In the order of the tables.
        deviations: How the study departs from the papers that it is compared with; printed with every table.
        search: How settings are searched for; None where none are.
    """

    name: str
    description: str
    methods: list[str]
    tasks: list[str]
    seeds: list[int]
    runs: list[PlannedRun]
    deviations: list[str] = field(default_factory=list)
    published: list[PublishedRow] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    costs: list[PlannedCosts] = field(default_factory=list)
    command: str = ""
    version: int = STUDY_VERSION
    search: SearchPlan | None = None

    def write(self, folder: Path, name: str = STUDY_FILE) -> None:
        """Writes the study into a folder by an atomic rename."""
        write_json(folder / name, with_hash(finite(dataclasses.asdict(self))), indent=1)

    @property
    def digest(self) -> str:
        """Names what is to be run: equal for the same runs."""
        identity: list[Any] = [[run.key, run.method, run.task, run.seed, run.overrides] for run in self.runs]
        if self.search is not None and self.search.cells:
            # The runs grow as the search goes on.
            of_search = [
                [cell.method, cell.task, cell.overrides, cell.last, cell.space, cell.steps]
                for cell in self.search.cells
            ]
            identity = [[self.search.trials, self.search.sampler, self.search.pruner, self.search.seed], of_search]
            identity.append(self.seeds)
        text = json.dumps(identity)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class _Versioned:
    version: int = 0


def read_study(folder: Path, name: str = STUDY_FILE) -> StudyFile | None:
    """The study whose runs lie in this folder; None where there is none.

    Raises:
        RequestError: If its file cannot be read.
    """
    file = folder / name
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        # First of all: the fields of a newer version may have other types.
        version = validate(_Versioned, content).version
        if version > STUDY_VERSION:
            raise ValueError(f"its version {version} is newer than this program: upgrade petl-bench")
        check_hash(content)
        study = validate(StudyFile, content)
        for number, run in enumerate(study.runs):
            for key, name in (("folder", run.folder), ("key", run.key)):
                if fault := name_fault(name):
                    raise ValueError(f"runs[{number}].{key}{fault}")
        for number, row in enumerate(study.published):
            for task, cell in row.cells.items():
                if cell[:1] in ([], [None]):
                    raise ValueError(f"published[{number}].cells.{task} has no value")
    except (ValueError, OSError) as error:
        raise RequestError(f"{file} cannot be read ({error}): delete it, `petl-bench study` writes it anew.") from error
    return study
