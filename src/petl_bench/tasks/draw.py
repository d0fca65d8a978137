"""What `task.data_seed` draws: the rows that train, those held out of them, and the sentences of the generated task.

Generated sentences mix sentiment, negation and contrast. Both sides of a contrast carry opposite sentiment, and
negation flips a side, so a bag of words does not determine the label: the side that the sentence asserts does.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from petl_bench.errors import RequestError
from petl_bench.tasks import TaskConfig, has_validation, holds_out, holds_out_by_class
from petl_bench.tasks.rows import Rows


def draw_rows(settings: TaskConfig, rows: Rows, labels: list[str] | None) -> tuple[Rows | None, Rows]:
    """Splits training rows into held-out ones and those to train on.

    One shuffle by `data_seed`: the first K rows train, the next are held out (UniPELT's draw, Mao et al., ACL 2022).
    With `held_out_draw=stratified` or `group_column` the rows to hold out are taken out first, so that they
    do not depend on K. With `rows_per_class` the first K of each class train, with `class_share` the share of each
    class.

    Args:
        settings: The task.
        rows: All its training rows.
        labels: The names of the classes; None for regression.

    Returns:
        The held-out rows, None where the protocol needs none, and those to train on; each in the order of `rows`.

    Raises:
        RequestError: If there are too few rows, or no groups where they are asked for.
    """
    if settings.group_column is not None and rows.groups is None:
        raise RequestError(
            f"task.group_column={settings.group_column} is not a column of the training rows: name one of theirs, or "
            "leave the setting out."
        )
    num_held_out = _num_held_out(settings, len(rows))
    limits = {"num_train_examples": settings.num_train_examples, "rows_per_class": settings.rows_per_class}
    key = next((name for name, limit in limits.items() if limit is not None), "num_train_examples")
    if limits[key] is None and num_held_out == 0:
        return None, rows
    order = np.random.default_rng(settings.data_seed).permutation(len(rows))
    held_out = _held_out_first(settings, rows, order, num_held_out) if num_held_out else None
    if held_out is not None:
        order, num_held_out = order[~np.isin(order, held_out)], len(held_out)
    num_left = len(order) - (num_held_out if held_out is None else 0)
    order, num_train = _training_first(settings, rows, order, labels)
    num_train = num_left if num_train is None else num_train
    if not 1 <= num_train <= num_left:
        raise RequestError(
            f"task.{key}={limits[key]} and {num_held_out} held-out rows do not fit into the {len(rows)} training rows: "
            f"lower task.{key} or task.num_held_out_examples."
        )
    if held_out is None:
        held_out = order[num_train : num_train + num_held_out]
    return rows.take(np.sort(held_out)) if num_held_out else None, rows.take(np.sort(order[:num_train]))


def _num_held_out(settings: TaskConfig, num_rows: int) -> int:
    """The number of rows to hold out; for a task without validation rows, at most a fifth."""
    if not holds_out(settings):
        return 0
    if has_validation(settings):
        return settings.num_held_out_examples
    if settings.protocol == "held_out":
        raise RequestError("task.protocol=held_out needs task.validation_file to report on.")
    count = min(settings.num_held_out_examples, num_rows // 5)
    if count == 0:
        raise RequestError(f"{num_rows} training rows are too few to hold some out: give task.validation_file.")
    return count


def _held_out_first(settings: TaskConfig, rows: Rows, order: np.ndarray, count: int) -> np.ndarray | None:
    """The positions of the rows to hold out where groups or classes decide on them; None where the shuffle does."""
    if rows.groups is not None:
        return _whole_groups(rows.groups, settings.data_seed, count)
    if holds_out_by_class(settings):
        assert rows.labels is not None
        return _of_each_class(rows.labels, order, count)
    return None


def _whole_groups(groups: np.ndarray, seed: int, count: int) -> np.ndarray:
    """The rows of randomly drawn groups, with enough groups to have `count` rows.

    scikit-learn's GroupShuffleSplit counts groups, whatever their sizes; here rows are counted.
    """
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(len(names))
    num_drawn = int(np.searchsorted(np.cumsum(sizes[drawn]), count)) + 1
    if num_drawn >= len(names):
        raise RequestError(
            f"Holding out {count} rows in whole groups of task.group_column leaves none of the {len(names)} groups to "
            "train on: lower task.num_held_out_examples, or group the rows by another column."
        )
    return np.flatnonzero(np.isin(group_of, drawn[:num_drawn]))


def _of_each_class(classes: np.ndarray, order: np.ndarray, count: int) -> np.ndarray | None:
    """The first rows of each class in an order, according to its share of `count`; none of classes with one row.

    None if a class would have no row left. scikit-learn's stratified splitters refuse a class of one row, and fewer
    held-out rows than classes, both of which occur with users' files.
    """
    numbers = np.bincount(classes)
    divisible = np.where(numbers > 1, numbers, 0)
    if count > divisible.sum():
        return None
    counts = _in_shares(count, divisible / divisible.sum())
    if (counts >= numbers)[numbers > 0].any():
        return None
    return np.concatenate([order[classes[order] == index][:number] for index, number in enumerate(counts)])


def _in_shares(count: int, shares: list[float] | np.ndarray) -> np.ndarray:
    """Splits a number of rows by shares; what rounding down leaves over goes to the largest remainders."""
    exact = count * np.array(shares)
    counts = np.floor(exact + 1e-9).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: count - counts.sum()]
    counts[largest] += 1
    return counts


def _training_first(
    settings: TaskConfig, rows: Rows, order: np.ndarray, labels: list[str] | None
) -> tuple[np.ndarray, int | None]:
    """Moves the rows to train on to the front of an order; also returns how many these are, None for all."""
    if settings.rows_per_class is not None:
        assert labels is not None
        counts = np.full(len(labels), settings.rows_per_class)
        return _few_of_each_first(rows, order, counts, labels, f"rows_per_class={settings.rows_per_class}")
    if settings.class_share is not None:
        assert labels is not None
        assert settings.num_train_examples is not None
        counts = _in_shares(settings.num_train_examples, settings.class_share)
        return _few_of_each_first(rows, order, counts, labels, f"class_share={settings.class_share}")
    return order, settings.num_train_examples


def _few_of_each_first(
    rows: Rows, order: np.ndarray, counts: np.ndarray, labels: list[str], setting: str
) -> tuple[np.ndarray, int]:
    """Moves the first rows of each class to the front of an order; also returns how many rows these are.

    Args:
        rows: The training rows.
        order: Positions in the order of the draw, of those rows that may train.
        counts: How many of each class are to train, shape (classes,).
        labels: The names of the classes.
        setting: The setting that requests them, for messages.
    """
    assert rows.labels is not None
    classes = rows.labels[order]
    numbers = np.bincount(classes, minlength=len(labels))
    if (numbers < counts).any():
        short = int((numbers - counts).argmin())
        remedy = f"lower it to {numbers[short]} or less" if setting.startswith("rows_per_class") else "lower its share"
        if not numbers[short]:
            remedy = "leave classes without rows out of task.labels"
        raise RequestError(
            f"task.{setting}: the class {labels[short]!r} has {numbers[short]} training rows, fewer than the "
            f"{counts[short]} that are wanted: {remedy}."
        )
    first = np.concatenate([order[classes == index][:count] for index, count in enumerate(counts)])
    return np.concatenate([first, order[~np.isin(order, first)]]), len(first)


NUM_VALIDATION = 400
MAX_TRAIN = 4000
SHARE_WITHOUT_CONTRAST = 0.5
SHARE_NEGATED = 0.25

_SUBJECTS = (
    "the plot", "the acting", "the food", "the service", "the music", "the ending", "the hotel", "the staff",
    "the script", "the camera", "the battery", "the price", "the concert", "the room", "the coffee", "the book",
)  # fmt: skip
_POSITIVE = (
    "good", "great", "wonderful", "pleasant", "charming", "excellent", "delightful", "impressive", "lovely", "superb",
)  # fmt: skip
_NEGATIVE = (
    "bad", "terrible", "awful", "boring", "dreadful", "poor", "disappointing", "horrible", "annoying", "mediocre",
)  # fmt: skip
# Openings and adverbs change no label; they make enough different sentences.
_OPENINGS = ("", "i think ", "for me, ", "this time ", "all in all, ", "as i see it, ")
_ADVERBS = ("", "really ", "quite ", "truly ", "simply ")
_NEGATIONS = ("not", "never", "hardly", "anything but")
# {a} is conceded, {b} is asserted.
_CONTRASTS = (
    "{a}, but {b}.",
    "although {a}, {b}.",
    "{b}, even though {a}.",
    "{b}, despite the fact that {a}.",
    "{a}; still, {b}.",
)


@cache
def demo_rows(split: str, data_seed: int) -> Rows:
    """Generates a split; no sentence is in two splits.

    Args:
        split: `train` (4,000 rows), `validation` or `test` (400 each).
        data_seed: Same seed, same sentences.
    """
    generator = random.Random(data_seed)  # noqa: S311 (sentences, not secrets)
    sizes = {"validation": NUM_VALIDATION, "test": NUM_VALIDATION, "train": MAX_TRAIN}
    seen: set[str] = set()
    for name, size in sizes.items():
        sentences: list[str] = []
        labels: list[int] = []
        while len(sentences) < size:
            label = len(sentences) % 2
            sentence = _sentence(generator, positive=bool(label))
            if sentence not in seen:
                seen.add(sentence)
                sentences.append(sentence)
                labels.append(label)
        if name == split:
            return Rows((sentences,), np.array(labels, dtype="int64"))
    raise KeyError(split)


def _sentence(generator: random.Random, *, positive: bool) -> str:
    opening, asserted = generator.choice(_OPENINGS), _clause(generator, positive)
    if generator.random() < SHARE_WITHOUT_CONTRAST:
        return f"{opening}{asserted}."
    return opening + generator.choice(_CONTRASTS).format(a=_clause(generator, not positive), b=asserted)


def _clause(generator: random.Random, positive: bool) -> str:
    negated = generator.random() < SHARE_NEGATED
    adjective = generator.choice(_POSITIVE if positive != negated else _NEGATIVE)
    verb = f"was {generator.choice(_NEGATIONS)}" if negated else "was"
    return f"{generator.choice(_SUBJECTS)} {verb} {generator.choice(_ADVERBS)}{adjective}"
