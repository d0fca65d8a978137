"""The columns of a user's file that hold texts and labels, found where there is no doubt (`data=FILE`)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from petl_bench.errors import RequestError
from petl_bench.tasks.rows import is_missing
from petl_bench.tasks.tables import Table, read_table

_log = logging.getLogger(__name__)

# Names of columns that hold labels, or texts in this order.
_LABEL_NAMES = {"label", "labels", "class", "category", "target", "intent", "queue", "topic", "sentiment"}
_TEXT_NAMES = (("text",), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
               ("question", "sentence"), ("sentence",))  # fmt: skip
_WORDS_OF_TEXT = 2.5  # on average, at least


def column_settings(path: str, given: Mapping[str, str]) -> list[str]:
    """The settings of a task of a user's file whose columns speak for themselves; the log says which were taken.

    Args:
        path: The file, as `data=` names it.
        given: The settings of the command that name columns, by key.

    Raises:
        RequestError: If the file cannot be read, or which column is which is not clear.
    """
    settings = ["task=custom", as_setting("task.train_file", path)]
    wanted = [key for key in ("task.text_columns", "task.label_column") if key not in given]
    if not wanted:
        return settings
    table = read_table(path, "data", read_table(path, "data", ()).names)
    label = given.get("task.label_column") or _label_column(table)
    taken = []
    if "task.text_columns" in wanted:
        texts = _text_columns(table, label)
        taken.append(f"text column{'s' * (len(texts) > 1)} {', '.join(map(repr, texts))}")
        settings.append("task.text_columns=[" + ",".join(as_setting("", name)[1:] for name in texts) + "]")
    if "task.label_column" in wanted:
        taken.append(f"label column {label!r}")
        settings.append(as_setting("task.label_column", label))
    _log.info("data=%s: %s (%s would say otherwise)", path, ", ".join(taken), ", ".join(wanted))
    return settings


def as_setting(key: str, value: object) -> str:
    """An override, its value in quotation marks where Hydra's grammar wants them."""
    text = str(value)
    if re.fullmatch(r"[\w./-]+", text):
        return f"{key}={text}"
    # A backslash stands for itself, except before a quotation mark.
    quoted = re.sub(r"\\+(?='|$)", lambda found: 2 * found[0], text).replace("'", "\\'")
    return f"{key}='{quoted}'"


def _label_column(table: Table) -> str:
    named = [name for name in table.names if name.strip().casefold() in _LABEL_NAMES and _may_be_labels(table, name, 1)]
    found = named or [one for one in table.names if _may_be_labels(table, one, 3) and not _is_text(table, one)]
    if len(found) != 1:
        which = f"{', '.join(map(repr, found))} all look like it" if found else "none repeats its values as labels do"
        raise RequestError(
            f"data={table.source}: which column holds the labels is not clear ({which}): say task.label_column=NAME, "
            f"one of {', '.join(map(repr, table.names))}."
        )
    return found[0]


def _text_columns(table: Table, label: str) -> list[str]:
    others = [name for name in table.names if name != label]
    plain = {name.strip().casefold(): name for name in reversed(others)}
    for names in _TEXT_NAMES:
        if all(name in plain for name in names):
            return [plain[name] for name in names]
    found = [name for name in others if _is_text(table, name)] or (others if len(others) == 1 else [])
    if len(found) != 1:
        which = f"{', '.join(map(repr, found))} all hold texts" if found else "none holds texts of several words"
        raise RequestError(
            f"data={table.source}: which column holds the texts is not clear ({which}): say "
            f"'task.text_columns=[NAME]', of {', '.join(map(repr, others))}."
        )
    return found


def _known(table: Table, name: str) -> list[str]:
    return [str(value) for value in table.columns[name] if not is_missing(value) and str(value).strip()]


def _may_be_labels(table: Table, name: str, rows_per_label: int) -> bool:
    """Whether values come more often than so many times on average, or all are one; fractions are no classes."""
    values = _known(table, name)
    fractions = any(re.fullmatch(r"-?\d*\.\d*[1-9]\d*", value.strip()) for value in values)
    return not fractions and (len(set(values)) == 1 or 0 < rows_per_label * len(set(values)) < len(values))


def _is_text(table: Table, name: str) -> bool:
    values = _known(table, name)
    return bool(values) and sum(len(value.split()) for value in values) / len(values) >= _WORDS_OF_TEXT
