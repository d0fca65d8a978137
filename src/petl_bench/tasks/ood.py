"""Rows that are out of distribution: which classes are left out of a task, and where such rows come from.

A run with `task.ood` is trained and selected on rows of the classes that it keeps; its scores then show which rows are
of none of these classes. `task.ood` is one of

- `classes`: a share of the classes, `task.ood_share`, is kept; the report rows of the others are out of distribution.
- `oos`: CLINC150's own queries that belong to none of its intents.
- a data set of `DATA_SETS`: its test rows. Classes that both data sets have are taken out of the task's, and their
  report rows are out of distribution, too.

The numbers of rows are those of LaCL's splits (Cho et al., Findings of EMNLP 2022), as far as the data are the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.process import user_path
from petl_bench.tasks import TaskConfig
from petl_bench.tasks.rows import UNLABELLED, Rows
from petl_bench.tasks.table_files import PACKAGE_DATA, read_folder, split_files

_log = logging.getLogger(__name__)

CLASSES, OOS = "classes", "oos"

# Data sets whose test rows can be out of distribution; snips is read from data_root.
DATA_SETS = ("banking77", "clinc150", "snips")

_CLINC = PACKAGE_DATA / "clinc150"

# What CLINC150 has in common with another data set: whole domains, or intents. The paper's split of CLINC150 against
# Snips leaves seven intents out, too, but which ones could not be read: these seven are ours.
_SHARED_DOMAINS = {"banking77": ("banking", "credit_cards")}
_SHARED_INTENTS = {
    "snips": (
        "next_song", "play_music", "restaurant_reservation", "restaurant_suggestion", "update_playlist", "weather",
        "what_song",
    ),
}  # fmt: skip

_TEXT = "text"


def known_classes(settings: TaskConfig, labels: list[str] | None) -> list[int] | None:
    """The classes that are trained, by their positions in `labels`.

    Args:
        settings: The task.
        labels: Names of all classes; None for regression.

    Returns:
        Positions in ascending order; None for all classes, where no class is left out.

    Raises:
        RequestError: If too few classes are kept, or none is left out.
    """
    if settings.ood is None or settings.ood == OOS or labels is None:
        return None
    if settings.ood == CLASSES:
        return _drawn_classes(settings, labels)
    shared = _shared_with_clinc(settings.ood) if settings.dataset == "clinc150" else set()
    return [index for index, label in enumerate(labels) if label not in shared]


def _drawn_classes(settings: TaskConfig, labels: list[str]) -> list[int]:
    """Draws the classes to keep by the data seed (CLINC150: as many per domain); larger shares include smaller ones."""
    assert settings.ood_share is not None
    domains = _clinc_domains().values() if settings.dataset == "clinc150" else [labels]
    generator = np.random.default_rng(settings.data_seed)
    known: list[str] = []
    for names in domains:
        # Halves are rounded to the even number, as in the splits that this follows.
        known += generator.permutation(sorted(names)).tolist()[: round(settings.ood_share * len(names))]
    if not 2 <= len(known) < len(labels):
        raise RequestError(
            f"task.ood_share={settings.ood_share:g} keeps {len(known)} of the {len(labels)} classes: at least two must "
            "be kept, and one left out."
        )
    return sorted(labels.index(name) for name in known)


def of_classes(rows: Rows, classes: list[int] | None) -> Rows:
    """The rows of these classes, which are renumbered in their order; None: all rows as they are."""
    if classes is None or rows.labels is None:
        return rows
    selected = rows.take(np.flatnonzero(np.isin(rows.labels, classes)))
    assert selected.labels is not None
    return replace(selected, labels=np.searchsorted(classes, selected.labels))


def ood_rows(settings: TaskConfig, report: Rows, classes: list[int] | None, data_root: str | None) -> Rows | None:
    """The rows that are out of distribution.

    Args:
        settings: The task.
        report: All rows to report on, including those of left-out classes.
        classes: As `known_classes` gives them.
        data_root: Folder of data sets that do not ship with the package.

    Returns:
        The rows, labelled as belonging to no class; None without `task.ood`.

    Raises:
        RequestError: If they are missing.
    """
    if settings.ood is None:
        return None
    parts = []
    if settings.ood == OOS:
        parts.append(_test_texts(_CLINC / OOS))
    elif settings.ood != CLASSES:
        parts.append(_of_other_data_set(settings, data_root))
    if classes is not None:
        assert report.labels is not None
        parts.append(report.take(np.flatnonzero(~np.isin(report.labels, classes))).texts)
    texts = tuple([text for part in parts for text in part[column]] for column in range(len(report.texts)))
    return Rows(texts, np.full(len(texts[0]), UNLABELLED, dtype="int64"))


def without_texts_of(rows: Rows, ood: Rows | None) -> Rows:
    """Leaves out rows whose text is also out of distribution, as a data set may give one text two labels."""
    if ood is None:
        return rows
    texts = set(zip(*ood.texts, strict=True))
    positions = [index for index, text in enumerate(zip(*rows.texts, strict=True)) if text not in texts]
    if len(positions) < len(rows):
        _log.warning(
            "rows left out because a row that is out of distribution has their text: %d of %d",
            len(rows) - len(positions),
            len(rows),
        )
    return rows.take(np.array(positions, dtype="int64"))


def ood_files(settings: TaskConfig, data_root: str | None) -> list[Path]:
    """The files of the rows that are out of distribution and do not ship with the package."""
    if settings.ood != "snips" or data_root is None:
        return []
    return split_files(user_path(data_root, "data_root"), None, "test")


def _of_other_data_set(settings: TaskConfig, data_root: str | None) -> tuple[list[str], ...]:
    assert settings.ood
    if settings.ood == "snips":
        if data_root is None:
            raise RequestError("task.ood=snips needs data_root=DIR, a folder with Snips as test-*.parquet.")
        return _test_texts(user_path(data_root, "data_root"))
    if settings.ood == "clinc150":
        shared = _shared_with_clinc(str(settings.dataset or settings.name))
        return _test_texts(_CLINC, lambda label: _clinc_intents()[label] not in shared)
    return _test_texts(PACKAGE_DATA / settings.ood)


def _test_texts(folder: Path, is_selected: Callable[[int], bool] | None = None) -> tuple[list[str], ...]:
    """The texts of a folder's test rows, as the only column; of all labels, or those that the function selects."""
    columns = read_folder(folder, None, "test", [_TEXT, "label"]).columns
    rows = zip(columns[_TEXT], columns["label"], strict=True)
    return ([text for text, label in rows if is_selected is None or is_selected(label)],)


def _shared_with_clinc(data_set: str) -> set[str]:
    """The intents of CLINC150 that another data set has, too."""
    domains = _clinc_domains()
    of_domains = {intent for domain in _SHARED_DOMAINS.get(data_set, ()) for intent in domains[domain]}
    return of_domains | set(_SHARED_INTENTS.get(data_set, ()))


@cache
def _clinc_domains() -> dict[str, list[str]]:
    domains: dict[str, list[str]] = json.loads((_CLINC / "domains.json").read_text(encoding="utf-8"))
    return domains


@cache
def _clinc_intents() -> list[str]:
    """All intents in the order of their labels."""
    return sorted(intent for intents in _clinc_domains().values() for intent in intents)


def check_ood(settings: TaskConfig) -> None:
    """Checks the settings of rows that are out of distribution.

    Raises:
        RequestError: If they do not fit the task, or each other.
    """
    if (settings.ood == CLASSES) != (settings.ood_share is not None):
        raise RequestError(
            "task.ood=classes and task.ood_share go together: the share of the classes that is kept, such as 0.5."
        )
    if settings.ood is None:
        return
    if settings.ood not in (CLASSES, OOS, *DATA_SETS):
        raise unknown_choice("task.ood", settings.ood, (CLASSES, OOS, *DATA_SETS))
    if settings.type != "classification":
        raise RequestError(f"task.ood={settings.ood} is for classes, which task.type={settings.type} has not.")
    if settings.ood_share is not None and not 0 < settings.ood_share < 1:
        raise RequestError(f"task.ood_share={settings.ood_share:g} must be between 0 and 1.")
    if settings.ood == OOS and settings.dataset != "clinc150":
        raise RequestError("task.ood=oos is for task=clinc150, which has such rows: use task.ood=classes.")
    if settings.ood in DATA_SETS and settings.ood == (settings.dataset or settings.name):
        raise RequestError(f"task.ood={settings.ood} is the task's own data set: use task.ood=classes.")
    if settings.ood in DATA_SETS and len(settings.text_columns) != 1:
        raise RequestError(
            f"task.ood={settings.ood} has one text a row, but task={settings.name} takes {len(settings.text_columns)}."
        )
