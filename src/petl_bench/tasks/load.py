"""Loads a task: its rows by split, its labels, and which rows select and which report."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from petl_bench.errors import RequestError, RunError, first_line
from petl_bench.process import user_path
from petl_bench.records.predictions import names_by_row
from petl_bench.tasks import ExtraSplit, TaskConfig, has_validation
from petl_bench.tasks.columns import find_transform
from petl_bench.tasks.draw import demo_rows, draw_rows
from petl_bench.tasks.metrics import METRICS, check_metrics, entity_tags, scheme_of, without_beginning
from petl_bench.tasks.ood import known_classes, of_classes, ood_rows, without_texts_of
from petl_bench.tasks.rows import UNLABELLED, Rows, class_names, require_labels, rows_from_table
from petl_bench.tasks.table_files import PACKAGE_DATA, Table, read_folder, read_table, split_files
from petl_bench.tasks.tagging import read_columns, tag_names, tagged_rows, without_tags

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtraRows:
    """Rows that the final checkpoint is scored on in addition to the report split."""

    rows: Rows
    metrics: list[str]


@dataclass(frozen=True)
class Task:
    """A loaded task.

    Attributes:
        settings: What it was loaded from.
        labels: Names of the classes or tags that are trained; None for regression.
        all_labels: All names, including those that are out of distribution.
        train, selection, report: Rows to train on, to choose the checkpoint on, and to report on.
        selection_split, report_split: Their names in the record.
        extra: Further rows to report on, by name.
        ood: Rows of none of the classes, to be distinguished from the report rows; None if not asked for.
        left_out: Numbers of rows left out as they have no label (`task.unlabelled`), by split; only splits with any.
    """

    settings: TaskConfig
    labels: list[str] | None
    all_labels: list[str] | None
    train: Rows
    selection: Rows
    report: Rows
    selection_split: str
    report_split: str
    extra: dict[str, ExtraRows] = field(default_factory=dict)
    ood: Rows | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of the primary metric is better."""
        return METRICS[self.settings.metric].higher_is_better

    @property
    def reports_on_selection(self) -> bool:
        """Whether the rows to report on are those that choose the checkpoint, so that they are scored once."""
        return self.report is self.selection

    @property
    def scheme(self) -> str | None:
        """The tagging scheme; None for other types of tasks."""
        return scheme_of(self.labels or (), "task.labels") if self.settings.type == "tagging" else None

    def rows_by_split(self) -> dict[str, Rows]:
        """The rows in use, by the names of their splits in the record."""
        rows = {"train": self.train, self.selection_split: self.selection, self.report_split: self.report}
        return rows | {name: item.rows for name, item in self.extra.items()}

    def tags(self, rows: Rows) -> list[list[str]]:
        """The tags of each row of a tagging task, as entity readers expect them."""
        assert self.labels is not None
        assert rows.labels is not None
        names = entity_tags(self.labels)
        return [[names[tag] for tag in of_row] for of_row in rows.labels]

    def given_names(self, rows: Rows) -> np.ndarray:
        """The tags or labels of each row of a tagging or multi-label task, as `names_by_row` has them."""
        if self.settings.type == "tagging":
            return names_by_row(self.tags(rows))
        assert self.labels is not None
        assert rows.labels is not None
        return names_by_row([self.labels[index] for index in np.flatnonzero(of_row)] for of_row in rows.labels)

    def without_beginning(self) -> dict[str, int]:
        """Entities by split that begin with the tag of an inner word; empty unless the scheme marks beginnings."""
        if self.scheme not in ("BIO", "BIOES"):
            return {}
        splits = self.rows_by_split().items()
        return {name: sum(map(without_beginning, self.tags(rows))) for name, rows in splits}

    def fingerprint(self) -> str:
        """Hex sha256 of all rows in use."""
        extra = [item.rows for item in self.extra.values()] + ([] if self.ood is None else [self.ood])
        parts = [rows.fingerprint() for rows in (self.train, self.selection, self.report, *extra)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def rows_per_split(self) -> dict[str, int]:
        """Number of rows in use, by split."""
        sizes = {name: len(rows) for name, rows in self.rows_by_split().items()}
        return sizes if self.ood is None else sizes | {"ood": len(self.ood)}


def load_task(settings: TaskConfig, data_root: str | None) -> Task:
    """Loads a task's rows and applies its protocol.

    Raises:
        RequestError: If files, columns, labels or the protocol do not fit.
        RunError: If the hub cannot be reached.
    """
    # A file is read once, so that labels and rows come from the same content.
    table = None if settings.source == "demo" else _read_table(settings, "train", data_root)
    all_labels = find_labels(settings, table)
    classes = known_classes(settings, all_labels)
    labels = all_labels if classes is None or all_labels is None else [all_labels[index] for index in classes]
    check_metrics(settings.metrics, settings.type, len(labels or []))
    rows = _demo_rows(settings, "train") if table is None else rows_of_table(table, settings, all_labels)
    all_train = require_labels(rows, settings, "the training rows")
    left_out = {"train": rows.num_left_out}

    def read_split(role: str) -> tuple[Rows, str]:
        """The labelled rows of a split and its name; counts the rows without a label."""
        name = getattr(settings, f"{role}_split")
        labelled = require_labels(_read_rows(settings, role, all_labels, data_root), settings, f"the split {name}")
        left_out[name] = labelled.num_left_out
        return labelled, name

    reported, report_split = all_train, "train_held_out"
    if has_validation(settings):
        reported, report_split = read_split("test" if settings.protocol == "test" else "validation")
    # Rows of left-out classes are not used to train or select; those to report on are out of distribution.
    ood = ood_rows(settings, reported, classes, data_root)
    held_out, train = draw_rows(settings, without_texts_of(of_classes(all_train, classes), ood), labels)
    report = of_classes(reported, classes)
    if not has_validation(settings):
        assert held_out is not None
        report = held_out
    selection, selection_split = report, report_split
    if held_out is not None:
        selection, selection_split = held_out, "train_held_out"
    elif settings.protocol == "test":
        selected, selection_split = read_split("validation")
        selection = without_texts_of(of_classes(selected, classes), ood)
    extra = {
        key: replace(item, rows=of_classes(item.rows, classes))
        for key, value in settings.also_report.items()
        if (item := _extra(settings, value, all_labels, data_root))
    }
    left_out = {name: count for name, count in left_out.items() if count}
    task = Task(
        *(settings, labels, all_labels, train, selection, report, selection_split, report_split, extra, ood, left_out)
    )
    _warn_of_tags(task)
    return task


def _warn_of_tags(task: Task) -> None:
    """Logs what is odd about the tags of a task."""
    if counts := {name: count for name, count in task.without_beginning().items() if count}:
        _log.warning(
            "entities that begin with the tag of an inner word, and are read as entities: %s",
            ", ".join(f"{count:,} of {name}" for name, count in counts.items()),
        )


def _read_rows(settings: TaskConfig, role: str, labels: list[str] | None, data_root: str | None) -> Rows:
    if settings.source == "demo":
        return _demo_rows(settings, role)
    return rows_of_table(_read_table(settings, role, data_root), settings, labels)


def rows_of_table(table: Table, settings: TaskConfig, labels: list[str] | None) -> Rows:
    """Picks the task's rows out of a table, as `rows_from_table` and `tagged_rows` say, after `task.transform`."""
    if transform := find_transform(settings.transform):
        table = transform.apply(table)
    read = tagged_rows if settings.type == "tagging" else rows_from_table
    return read(table, settings, labels)


def columns_of_texts(settings: TaskConfig) -> list[str]:
    """The columns that the texts of a task are made of."""
    transform = find_transform(settings.transform)
    return [*settings.text_columns, *(transform.columns if transform else ())]


def rows_of_texts(texts: tuple[list[str], ...], settings: TaskConfig) -> Rows:
    """Rows of texts without labels, one list a text column."""
    return without_tags(texts, settings.units) if settings.type == "tagging" else Rows(texts, None)


def _demo_rows(settings: TaskConfig, role: str) -> Rows:
    return demo_rows(getattr(settings, f"{role}_split"), settings.data_seed)


def _read_table(settings: TaskConfig, role: str, data_root: str | None) -> Table:
    """Reads the table of a role: `train`, `validation` or `test`."""
    columns = [*columns_of_texts(settings), settings.label_column, *filter(None, [settings.group_column])]
    if settings.source in ("files", "folder"):
        key = f"{role}_file"
        file = getattr(settings, key)
        if file is None:
            raise RequestError(f"task.{key} must be given: it holds the {role} rows.")
        return read_file(settings, file_path(settings, file, data_root), f"task.{key}", columns)
    return _hub_split(settings, settings.subset, getattr(settings, f"{role}_split"), data_root, columns)


def file_path(settings: TaskConfig, file: str, data_root: str | None) -> str:
    """The path of a file of the task; with `source=folder`, it is in `data_root`.

    Raises:
        RequestError: If there is no such folder.
    """
    if settings.source != "folder":
        return file
    if data_root is None or not user_path(data_root, "data_root").is_dir():
        lacking = "needs a folder" if data_root is None else f"needs a folder, and data_root={data_root} is none"
        names = (settings.train_file, settings.validation_file, settings.test_file)
        raise RequestError(
            f"task={settings.name} {lacking}: give data_root=DIR with the files {', '.join(filter(None, names))}"
            + (f" of {settings.dataset}." if settings.dataset else ".")
        )
    return str(user_path(data_root, "data_root") / file)


def read_file(settings: TaskConfig, file: str, key: str, columns: list[str]) -> Table:
    """Reads a table of the task from a file.

    Args:
        settings: The task.
        file: The file.
        key: The setting that named it, for messages.
        columns: The columns to read.

    Returns:
        The table with its columns as they stand in the file.

    Raises:
        RequestError: If it cannot be read.
    """
    if settings.type != "tagging":
        return read_table(file, key, columns)
    names = {"words": settings.text_columns[0], "tags": settings.label_column}
    return read_table(file, key, columns, lambda text, source: read_columns(text, source, **names))


def read_subset(
    settings: TaskConfig, subset: str | None, split: str, labels: list[str] | None, data_root: str | None
) -> Rows:
    """Reads a split of any subset of the task's hub dataset.

    Args:
        settings: The task.
        subset: The dataset's config, such as `mrpc`; None for a dataset without configs.
        split: Name of the split, such as `validation_matched`.
        labels: Names of the classes; None for regression.
        data_root: Folder of local rows; None: from the hub or its cache.

    Returns:
        The rows, with labels where the split has them.

    Raises:
        RequestError: If there is no such split, or its columns or labels do not fit.
        RunError: If the hub cannot be reached.
    """
    columns = [*columns_of_texts(settings), settings.label_column]
    return rows_of_table(_hub_split(settings, subset, split, data_root, columns), settings, labels)


def find_labels(settings: TaskConfig, table: Table | None = None) -> list[str] | None:
    """Names of classes or tags: the task's own, else the distinct ones of its training file; None for regression.

    Args:
        settings: The task.
        table: The table of the training file; None: it is read if needed.

    Raises:
        RequestError: If there are fewer than two classes, or the file cannot be read.
    """
    if settings.type == "regression":
        return None
    if settings.labels:
        if settings.type == "tagging":
            scheme_of(settings.labels, "task.labels")
        return list(settings.labels)
    if settings.source != "files" or settings.train_file is None:
        raise RequestError("task.labels must name the classes.")
    table = table or _read_table(settings, "train", None)
    if settings.type == "tagging":
        return tag_names(table, settings)
    table.column(settings.label_column, f"task.label_column={settings.label_column}")
    return class_names(table, settings)


def trained_labels(settings: TaskConfig) -> list[str] | None:
    """The names of the classes that are trained; None for regression.

    Raises:
        RequestError: If there are fewer than two classes, or the training file cannot be read.
    """
    labels = find_labels(settings)
    classes = known_classes(settings, labels)
    return labels if labels is None or classes is None else [labels[index] for index in classes]


def _extra(
    settings: TaskConfig, extra: ExtraSplit, labels: list[str] | None, data_root: str | None
) -> ExtraRows | None:
    """Loads further rows to report on; None where they are optional and absent or unlabelled."""
    if extra.optional and data_root and not split_files(Path(data_root).expanduser(), extra.subset, extra.split):
        return None
    rows = read_subset(settings, extra.subset, extra.split, labels, data_root)
    if extra.optional and (rows.labels is None or (rows.labels == UNLABELLED).any()):
        return None
    return ExtraRows(require_labels(rows, settings, f"{extra.subset}/{extra.split}"), list(extra.metrics))


def _hub_split(
    task: TaskConfig, subset: str | None, split: str, data_root: str | None, columns: Collection[str]
) -> Table:
    """Reads one split of a data set of the hub, or of one that ships with the package.

    Args:
        task: Names the source, the dataset and its revision.
        subset: The dataset's config, e.g. `mrpc`; None for a dataset without configs.
        split: e.g. `validation_matched`.
        data_root: A folder that `read_folder` reads; None asks the hub (or its local cache).
        columns: The columns to read; those that the table lacks are left out.

    Raises:
        RequestError: If the folder does not hold the split, or a file in it is broken.
        RunError: If the hub cannot be reached.
    """
    source = split if subset is None else f"{subset}/{split}"
    if task.source == "package":
        return read_folder(PACKAGE_DATA, "/".join(filter(None, (task.dataset, subset))), split, columns)
    if data_root is not None:
        return read_folder(user_path(data_root, "data_root"), subset, split, columns)
    if task.dataset is None:
        raise RequestError(f"task={task.name} names no data set: give task.dataset=OWNER/NAME, or data_root=DIR.")
    if Path(task.dataset).exists():
        raise RequestError(
            f"task.dataset={task.dataset} would be read from the folder of this name here, not from the hub: give "
            f"data_root={task.dataset}, or run the command in another folder."
        )
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        # Never a bare name: offline, `glue` would match any cached local folder of that name.
        loaded = datasets.load_dataset(task.dataset, subset, split=split, revision=task.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, ValueError) and "find cache" not in str(error):
            raise RequestError(f"{task.dataset} has no split {source}: {first_line(error)}") from error
        name = task.dataset if subset is None else f"{task.dataset} ({subset})"
        raise RunError(
            f"{name} could not be fetched and is not in the local cache: run `petl-bench fetch task={task.name}` where "
            "there is a network, or point data_root=DIR (or PETL_BENCH_DATA) at a folder laid out like it. "
            f"({type(error).__name__})"
        ) from error
    names = list(loaded.column_names)
    return Table(source, names, loaded.select_columns([name for name in names if name in columns]).to_dict())
