"""`study.json`: the runs of a study and the published results to compare it with; stored next to the records.

Reports read it to find out which records belong to the study, under which names, and which are missing.
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
        row: The paper's name for the row.
        source: Paper and table.
        cells: By the study's task name: the value, and its spread if the paper prints one.
        method: The study's method that it is compared with; None if the row is only shown.
        metrics: The paper's metric by task, if it is not the task's primary metric here.
        statistic: What the values are over several seeds, e.g. `median of 5`.
        split: The rows that the paper scored on, e.g. `validation`, `test`.
        params: Trained parameters, as the paper prints them.
        average: The paper's own last column; it is never recomputed.
        comparable: Whether the paper's protocol matches this study's.
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
        source: The paper, and the place in it.
        test: The test that `petl_bench.reports.claims` computes; empty if the claim cannot be tested.
        untestable: Why it cannot be tested here; None if it can.
    """

    claim: str
    source: str
    test: dict[str, Any] = field(default_factory=dict)
    untestable: str | None = None


@dataclass
class PlannedRun:
    """One run of a study.

    Attributes:
        method, task: The study's names, which may differ from those of the configs.
        learning_rate: The rate, if the study tries several; None for the method's default.
        is_trial: Whether the run is a trial that helps to choose the settings.
        chosen: Whether the study reports it: False for settings that were tried but not chosen, None if undecided.
        key: The run key.
        folder: The run's folder, next to this file.
        overrides: `petl-bench run` with these overrides executes just this run.
        cache: The run's `train.cache`, not part of its key: a record with times of another mode does not complete it.
        tried: The settings that are compared with others for the method, by name; empty if there are no others.
        share: The share of the full training, for trials that end early or see fewer rows.
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
        # Older files contain only learning rates.
        if self.learning_rate is not None and not self.tried:
            self.tried = {"train.learning_rate": self.learning_rate}

    @property
    def candidate(self) -> str:
        """A name for the tried settings; runs of a method and task with the same name differ only in the seed."""
        return candidate_name(self.tried)

    @property
    def is_asked_for(self) -> bool:
        """Whether the run is needed, as far as known; settings that were not chosen need only their trials."""
        return self.is_trial or self.chosen is not False


def selection_score(record: Record) -> float | None:
    """Returns the selected weights' score on the selection split (higher is better), or None if there is none."""
    if record.status != "finished" or record.protocol is None or not record.history:
        return None
    sign = 1.0 if record.protocol.higher_is_better else -1.0
    return sign * record.protocol.selected([entry.scores[record.protocol.metric] for entry in record.history])


def candidate_name(tried: Mapping[str, Any]) -> str:
    """Returns a name for settings that does not depend on their order."""
    return json.dumps(tried, sort_keys=True)


@dataclass
class SearchedCell:
    """A method on a task, with the data that an adaptive search needs.

    Attributes:
        overrides: Settings of all its runs; `last` takes precedence over sampled settings.
        space: The range of each setting that is searched.
        steps: The successive training lengths of a trial: (share of the full training, override).
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
    """The settings of a study's search (`petl_bench.studies.search.SearchConfig`).

    Attributes:
        cells: The searched cells if trials depend on earlier ones; otherwise empty.
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
    """A study as requested, with all its settings resolved.

    Attributes:
        methods, tasks, seeds: In the order of the tables.
        deviations: How the study differs from the papers that it is compared with; printed with every table.
        search: How settings are searched; None if there is no search.
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
        """Writes the study to a folder with an atomic rename."""
        write_json(folder / name, with_hash(finite(dataclasses.asdict(self))), indent=1)

    @property
    def digest(self) -> str:
        """A hash of the planned runs: equal for the same runs."""
        identity: list[Any] = [[run.key, run.method, run.task, run.seed, run.overrides] for run in self.runs]
        if self.search is not None and self.search.cells:
            # The search adds runs over time, so its settings are hashed instead.
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
    """Reads the study whose runs are in this folder; None if there is none.

    Raises:
        RequestError: If its file cannot be read.
    """
    file = folder / name
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        # The version is checked first, because fields of a newer version may have other types.
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
