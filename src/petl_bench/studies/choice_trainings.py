"""The trainings of a choice: the rows that they see, how long they are, and how many seconds they take."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from petl_bench.config import RunConfig, load_config
from petl_bench.errors import RequestError
from petl_bench.process import atomic_write
from petl_bench.records.schema import Record
from petl_bench.records.store import RECORD_FILE
from petl_bench.records.study_file import PlannedRun
from petl_bench.settings import as_setting, quoted
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.search import SearchConfig, steps_of
from petl_bench.tasks import TaskConfig
from petl_bench.tasks.load import load_task
from petl_bench.tasks.rows import Rows
from petl_bench.training import training_for_few_rows

# The tables' name for LoRA as it would be run without a choice.
REFERENCE = "lora at its default"

# A method, or REFERENCE, with the settings that are tried.
Candidate = tuple[str, dict[str, Any]]

# In a single file, every fifth row of a class is a selection row and every fifth a reported row; fewer in large files.
_EVERY, _FEWEST_ROWS = 5, 60
# The first steps see a ninth and a third of the rows; if these are too few, they train for fewer epochs instead.
_SUBSETS = (1 / 9, 1 / 3)
_FEWEST_IN_SUBSET = 200
# The files of a choice hold rows that were drawn, and texts that were made, by these settings.
_DRAWN_ALREADY = [f"task.{name}=null" for name in ("num_train_examples", "rows_per_class", "class_share", "transform")]


@dataclass(frozen=True)
class Subset:
    """The rows that the runs of a step see, and how long they train.

    Attributes:
        share: Length of a training as a share of the whole one.
        by_rows: Whether the runs see fewer rows; otherwise they train for fewer epochs.
        overrides: The settings that do this.
        description: A description for messages.
    """

    share: float
    by_rows: bool
    overrides: list[str]
    description: str


@dataclass(frozen=True)
class ChoiceRows:
    """The rows of a choice: those that train, those that choose, and those that are reported.

    Attributes:
        overrides: The settings of all runs that keep these rows apart.
        subsets: The subsets of the first steps, the smallest first. The last one may be a whole training.
        shorter: Shorter trainings on all rows, the shortest first, for when time does not suffice for a whole one.
        counts: Number of rows by split.
        fingerprint: Fingerprint of all rows.
        files: The content of the files that the settings name, by path; `write` writes them.
    """

    overrides: list[str]
    subsets: list[Subset]
    shorter: list[Subset]
    counts: dict[str, int]
    fingerprint: str
    files: dict[Path, str]

    @property
    def lengths(self) -> list[float]:
        """The possible lengths of the last trainings, as shares of a whole training on all rows, the whole first."""
        return [1.0, *(subset.share for subset in reversed(self.shorter))]

    @property
    def by_rows(self) -> bool:
        """Whether the trainings that choose see fewer rows; otherwise they train for fewer epochs."""
        return self.subsets[0].by_rows

    def halvings(self, first: int) -> list[int]:
        """The indices of the subsets on which the better third of what was trained on subset `first` goes on."""
        return [index for index in range(first + 1, len(self.subsets)) if self.subsets[index].share < 1]

    def settings(self, subset: int | None, share: float) -> tuple[list[str], float]:
        """Returns the settings of a step's runs, and the length of its trainings as a share of a whole one.

        Args:
            subset: Index of the subset that they see; None: all rows.
            share: With all rows, the length of a training: one of `lengths`.
        """
        if subset is not None:
            return self.subsets[subset].overrides, self.subsets[subset].share
        return next((shorter.overrides for shorter in self.shorter if shorter.share == share), []), share

    def write(self) -> None:
        """Writes the files; one that already has this content is left unchanged."""
        for file, text in self.files.items():
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                with atomic_write(file) as partial:
                    partial.write_text(text, encoding="utf-8")


def prepare_rows(cfg: RunConfig, overrides: list[str], folder: Path) -> ChoiceRows:
    """Separates the selection rows from the reported rows, and makes subsets of the training rows.

    A single file of a user is split into three parts, by class. For tasks that have separate rows for the report, some
    training rows are held out, unless they already are. Of a task that classifies rows or gives them a number, the runs
    of the first steps do not even read the reported rows. Nothing is written yet.

    Args:
        cfg: The config of a run.
        overrides: Its overrides, which take precedence.
        folder: The study's folder; rows of the first steps, and the parts of a user's file, belong below it.

    Returns:
        The settings that keep the rows apart, the subsets, and the number of rows of each split.

    Raises:
        RequestError: If there are too few rows, or the task's rows cannot be split here.
    """
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    task, added, contents = cfg.task, list[str](), dict[Path, str]()
    if task.source == "files" and task.validation_file is None:
        loaded = load_task(_all_rows(task), cfg.data_root)
        rows = _joined(loaded.train, loaded.report)
        parts = {name: rows.take(indices) for name, indices in _split(rows, loaded.labels, task).items()}
        files = {name: folder / "rows" / f"{name}.jsonl" for name in parts}
        keys = {"train": "train_file", "selection": "validation_file", "report": "test_file"}
        added = [as_setting(f"task.{key}", files[name]) for name, key in keys.items()]
        added += ["task.protocol=test", *_DRAWN_ALREADY]
        contents = {files[name]: _as_text(part, loaded.labels, task) for name, part in parts.items()}
        if loaded.labels is not None and len(np.unique(_classes(parts["train"], loaded.labels))) < len(loaded.labels):
            # A class whose rows must stay together, and all went elsewhere, is still a class of the reported rows.
            added.append(f"task.labels=[{','.join(map(quoted, loaded.labels))}]")
    else:
        if task.protocol == "standard":
            added = ["task.protocol=held_out"]
            task = replace(task, protocol="held_out")
        loaded = load_task(task, cfg.data_root)
        parts = {"train": loaded.train, "selection": loaded.selection, "report": loaded.report}
    added += training_for_few_rows(len(parts["train"]), cfg.train, given)
    whole = load_config([*overrides, *added, "method=lora"])
    is_plain = task.type in ("classification", "regression") and not task.also_report and task.ood is None
    if is_plain:
        subsets, of_steps = _subsets_of_files(whole, parts, loaded.labels, folder / "rows")
        contents |= of_steps
    else:
        subsets = _shortened(whole, [])
    digest = hashlib.sha256("".join(part.fingerprint() for part in parts.values()).encode()).hexdigest()
    shorter = [subset for subset in _shortened(whole, []) if subset.share < 1]
    counts = {name: len(part) for name, part in parts.items()}
    return ChoiceRows(added, subsets, shorter, counts, digest, contents)


def _subsets_of_files(
    cfg: RunConfig, parts: dict[str, Rows], labels: list[str] | None, folder: Path
) -> tuple[list[Subset], dict[Path, str]]:
    """Returns the first steps on few rows if there are many, else for fewer epochs, and the content of their files."""
    task, train = cfg.task, parts["train"]
    by_file = {"selection": parts["selection"], "train": train}
    by_rows = round(_SUBSETS[0] * len(train)) >= _FEWEST_IN_SUBSET and cfg.train.max_steps is None
    if by_rows:
        order = np.random.default_rng(task.data_seed).permutation(len(train))
        by_file |= {_file_name(share): train.take(_of_each(train, labels, order, share)) for share in _SUBSETS}
    contents = {folder / f"{name}.jsonl": _as_text(rows, labels, task) for name, rows in by_file.items()}
    settings = [
        *("task.source=files", as_setting("task.validation_file", folder / "selection.jsonl"), "task.test_file=null"),
        *("task.protocol=standard", *_DRAWN_ALREADY),
    ]
    if not by_rows:
        return _shortened(cfg, [*settings, as_setting("task.train_file", folder / "train.jsonl")]), contents
    subsets = [
        Subset(
            len(by_file[name]) / len(train),
            True,
            [*settings, as_setting("task.train_file", folder / f"{name}.jsonl")],
            f"{len(by_file[name]):,} rows",
        )
        for name in map(_file_name, _SUBSETS)
    ]
    return subsets, contents


def _file_name(share: float) -> str:
    return f"train-{round(1 / share)}th"


def _of_each(rows: Rows, labels: list[str] | None, order: np.ndarray, share: float) -> np.ndarray:
    """Returns a share of the rows of each class, at least one row; a larger share includes every smaller one."""
    classes = _classes(rows, labels)
    taken = [
        order[classes[order] == index][: math.ceil(share * (classes == index).sum())]
        for index in range(max(len(labels or ()), 1))
    ]
    return np.sort(np.concatenate(taken))


def _classes(rows: Rows, labels: list[str] | None) -> np.ndarray:
    """Returns the class of each row; for regression, it is the same for all rows."""
    assert rows.labels is not None
    return np.zeros(len(rows), dtype=int) if labels is None else rows.labels


def _shortened(cfg: RunConfig, settings: list[str]) -> list[Subset]:
    """Returns the first steps as trainings of fewer epochs, or updates, on all rows, and last the whole training."""
    try:
        lengths = steps_of(SearchConfig(1, pruner="hyperband"), cfg)
    except RequestError:
        # A training of one epoch cannot be shortened.
        return [Subset(1.0, False, settings, "all rows")]
    return [
        Subset(share, False, [*settings, length], length.removeprefix("train.").replace("=", " "))
        for share, length in lengths
    ]


def _all_rows(task: TaskConfig) -> TaskConfig:
    """Returns the task with all rows of its file for training except one, which takes the place of the report rows."""
    if task.type not in ("classification", "regression"):
        raise RequestError(
            f"task.type={task.type}: one file of it is not split here: give task.validation_file=FILE with the rows to "
            "report on."
        )
    return replace(task, num_held_out_examples=1, held_out_draw="random", protocol="standard")


def _joined(first: Rows, second: Rows) -> Rows:
    assert first.labels is not None
    assert second.labels is not None
    texts = tuple([*a, *b] for a, b in zip(first.texts, second.texts, strict=True))
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = np.concatenate([first.groups, second.groups])
    return Rows(texts, np.concatenate([first.labels, second.labels]), groups=groups)


def _split(rows: Rows, labels: list[str] | None, task: TaskConfig) -> dict[str, np.ndarray]:
    """Draws each part's share of the rows of every class; rows of a class with few rows go to the training rows first.

    Equal texts, or the rows of a group, stay in one part, so that no reported row was trained on.
    """
    if len(rows) < _FEWEST_ROWS:
        raise RequestError(
            f"{len(rows)} rows are too few to choose by: at least {_FEWEST_ROWS} are needed, some to train on, some to "
            "choose by and some to report on."
        )
    order, classes = np.random.default_rng(task.data_seed).permutation(len(rows)), _classes(rows, labels)
    together = list(zip(*rows.texts, strict=True)) if rows.groups is None else rows.groups.tolist()
    first: dict[Any, str] = {}
    parts: dict[str, list[int]] = {"train": [], "selection": [], "report": []}
    # By part: one in this many rows of a class goes to it.
    every = {part: max(_EVERY, len(rows) // most) for part, most in (("selection", 1000), ("report", 2000))}
    for index in range(max(len(labels or ()), 1)):
        for number, row in enumerate(order[classes[order] == index]):
            part = "train"
            if number % every["report"] == 3:
                part = "report"
            elif number % every["selection"] == 2:
                part = "selection"
            parts[first.setdefault(together[row], part)].append(int(row))
    for part in ("selection", "report"):
        if len(parts[part]) < _FEWEST_ROWS // 10:
            needed = "most classes need three rows or more"
            if len(first) < len(rows) // 2:
                what = "text" if rows.groups is None else "group"
                needed = f"rows of one {what} stay together, and there are {len(first)}"
            raise RequestError(f"{len(rows)} rows of {len(labels or ())} classes are too few to choose by: {needed}.")
    return {name: np.sort(np.array(indices)) for name, indices in parts.items()}


def _as_text(rows: Rows, labels: list[str] | None, task: TaskConfig) -> str:
    """Returns rows as JSON lines."""
    assert rows.labels is not None
    lines = []
    for number, texts in enumerate(zip(*rows.texts, strict=True)):
        label = float(rows.labels[number]) if labels is None else labels[int(rows.labels[number])]
        row = dict(zip(task.text_columns, texts, strict=True)) | {task.label_column: label}
        if task.group_column is not None and rows.groups is not None:
            row[task.group_column] = rows.groups[number]
        lines.append(json.dumps(row, ensure_ascii=False))
    return "\n".join(lines) + "\n"


class Durations:
    """Predicts durations from finished trainings, using the longest one of each method.

    Args:
        folder: The study's folder.
        rows: The rows that its runs see.
        finished: The runs that finished, with their records.
    """

    def __init__(self, folder: StudyFolder, rows: ChoiceRows, finished: Sequence[tuple[PlannedRun, Record]]) -> None:
        self._rows, self._finished = rows, finished
        rests = sorted(rest for run, record in finished if (rest := _rest_seconds(folder, run, record)) is not None)
        # The lower quartile, because the first runs of a process also import packages for the later ones.
        self._rest = rests[len(rests) // 4] if rests else 0.0

    def predict(self, candidates: Sequence[Candidate], share: float, seeds: int = 1, *, reports: bool = False) -> float:
        """Predicts the total seconds of trainings that are made one after the other.

        Args:
            candidates: The candidates to train; a method that was not trained yet is assumed to take as long as LoRA,
                or as long as the slowest method if LoRA was not trained either.
            share: Length of each training as a share of a whole one.
            seeds: Number of seeds of each candidate.
            reports: Whether the reported rows are scored as well.

        Returns:
            Seconds; 0 if nothing was trained yet.
        """
        features, total = 0.0, 0.0
        counts, by_rows = self._rows.counts, self._rows.by_rows
        # Features are computed once for all runs that read them; of the same rows, only the report's are new.
        of_report = counts["report"] / (counts["train"] + counts["selection"]) if reports else 0.0
        for method, _ in candidates:
            longest = self._longest("lora" if method == REFERENCE else method)
            if longest is None:
                alike = [self.predict([(other, {})], share, reports=reports) for other in self._alike()]
                total += seeds * max(alike, default=0.0)
                continue
            longest_share, record = longest
            assert record.time
            ratio = share / longest_share
            one_scoring = record.time.eval_seconds / max(1, len(record.history))
            scorings = _num_scorings(record, ratio, by_rows=by_rows)
            seconds = _training_seconds(record, ratio) + one_scoring * scorings + self._rest
            if reports:
                seconds += one_scoring * counts["report"] / counts["selection"]
            total += seeds * seconds
            features = max(features, (record.time.features_seconds or 0.0) * (ratio if by_rows else of_report))
        return total + features

    def _longest(self, method: str) -> tuple[float, Record] | None:
        """Returns the longest training of a method, with its share of a whole one; None if there is none."""
        of_method = ((float(run.share), record) for run, record in self._finished if run.method == method)
        return max(of_method, key=lambda training: training[0], default=None)

    def _alike(self) -> list[str]:
        methods = {run.method for run, _ in self._finished} - {REFERENCE}
        return ["lora"] if "lora" in methods else sorted(methods)


def _rest_seconds(folder: StudyFolder, run: PlannedRun, record: Record) -> float | None:
    """Returns the seconds of a run that are neither training nor scoring nor the features of frozen layers."""
    try:
        first = folder.run_folder(run).log.read_text(encoding="utf-8")[:23]
        begun = datetime.strptime(first, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
        ended = (folder.path / run.folder / RECORD_FILE).stat().st_mtime
    except (OSError, ValueError):
        return None
    if record.time is None or record.resumed_at_updates:
        return None
    reused = record.frozen is not None and record.frozen.reused
    features = 0.0 if reused else record.time.features_seconds or 0.0
    return max(0.0, ended - begun - record.time.train_seconds - record.time.eval_seconds - features)


def _training_seconds(record: Record, ratio: float) -> float:
    """Predicts the seconds of a training with `ratio` times the updates; the first updates of each take longer."""
    assert record.time
    updates, first = record.history[-1].step, record.time.warm_up_updates
    if updates <= first:
        return record.time.train_seconds * ratio
    each = (record.time.train_seconds - record.time.warm_up_seconds) / (updates - first)
    return record.time.warm_up_seconds + each * max(0.0, ratio * updates - first)


def _num_scorings(record: Record, ratio: float, *, by_rows: bool) -> float:
    """Predicts how often a training with `ratio` times the updates is scored: every so many updates, or every epoch."""
    every = record.config["train"]["evaluate_every"]
    if every is not None:
        return math.ceil(round(record.history[-1].step * ratio) / every)
    return len(record.history) * (1.0 if by_rows else ratio)
