"""The embedded task: generated sentences that mix sentiment, negation and contrast.

Both sides of a contrast carry opposite sentiment, and negation flips a side, so a bag of words does not
determine the label: the side that the sentence asserts does.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from petl_bench.tasks.rows import Rows

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
