"""Tags of words and the entities that they come to: tagging schemes, scores by seqeval, places in a text.

An entity counts as found if its type, its first and its last word are right. Tags are read by the rule of conlleval: an
inner word without a beginning begins an entity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from petl_bench.errors import RequestError
from petl_bench.records.predictions import TypeScores

OUTSIDE = "O"

# What may stand before the type of an entity, by scheme: beginning, inside, end, single word.
SCHEMES = {"IO": "I", "BIO": "BI", "BIOES": "BIES"}

_PREFIXED = re.compile(r"([A-Z])(?:-(.+))?", re.DOTALL)
# Letters of schemes that have the same tags under other names.
_OTHER_LETTERS = {"L": "E", "U": "S", "M": "I", "W": "S"}

Span = tuple[int, int]

# Tags of one sentence.
Tags = Sequence[str]


def scheme_of(tags: Iterable[str], where: str) -> str:
    """Recognises the tagging scheme, a key of `SCHEMES`.

    Args:
        tags: The names of all tags.
        where: What names them, for messages.

    Raises:
        RequestError: If none outside entities is among them, or they are of no scheme that is known.
    """
    inside = sorted(set(tags) - {OUTSIDE})
    if not inside or len(inside) == len(set(tags)):
        raise RequestError(
            f"{where}: {'all tags are' if not inside else 'no tag is'} {OUTSIDE}, the one of words outside of entities."
        )
    matches = {tag: _PREFIXED.fullmatch(tag) for tag in inside}
    letters = {match[1] for match in matches.values() if match}
    plain = [tag for tag, match in matches.items() if match is None]
    if not letters:
        return "IO"
    if plain:
        raise RequestError(
            f"{where}: the tag {plain[0]!r} has no letter in front and {sorted(set(inside) - set(plain))[0]!r} has: "
            "write B-, I-, E- or S- before the types of all, or of none."
        )
    for scheme, allowed in SCHEMES.items():
        if letters <= set(allowed):
            return scheme
    unknown = sorted(letters - set(SCHEMES["BIOES"]))
    renamed = [f"{_OTHER_LETTERS[letter]} for {letter}" for letter in unknown if letter in _OTHER_LETTERS]
    raise RequestError(
        f"{where}: tags that begin with {', '.join(unknown)} are of none of the schemes {', '.join(SCHEMES)}"
        + (f": write {', '.join(renamed)}." if renamed else ".")
    )


def entity_tags(labels: list[str]) -> list[str]:
    """The tags as readers of entities take them: a bare type of the scheme IO gets the letter I in front."""
    is_bare = not any(_PREFIXED.fullmatch(tag) for tag in labels if tag != OUTSIDE)
    return [f"I-{tag}" if is_bare and tag != OUTSIDE else tag for tag in labels]


def without_beginning(tags: list[str]) -> int:
    """Counts entities of a sentence that begin with the tag of an inner word, in the schemes BIO and BIOES."""
    count, before = 0, OUTSIDE
    for tag in tags:
        letter, _, kind = tag.partition("-")
        goes_on = before[0] in "BI" and before.partition("-")[2] == kind
        count += letter in ("I", "E") and not goes_on
        before = tag
    return count


def entities(tags: Tags) -> list[tuple[str, int, int]]:
    """Type, first word and last word of each entity of a sentence, as seqeval reads them."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [(kind, first, last) for kind, first, last in get_entities(list(tags))]


def entity_scores(references: Iterable[Tags], predictions: Iterable[Tags]) -> tuple[float, float, float]:
    """Precision, recall and F1 over all entities; 0 where they are undefined."""
    precision, recall, f1, _ = _by_seqeval(references, predictions, "micro")
    return float(precision), float(recall), float(f1)


def type_scores(references: Iterable[Tags], predictions: Iterable[Tags]) -> dict[str, TypeScores]:
    """Precision, recall, F1 and number of entities of each type that occurs or is predicted, in alphabetical order."""
    references, predictions = list(references), list(predictions)
    types = sorted({kind for tags in (*references, *predictions) for kind, _, _ in entities(tags)})
    columns = _by_seqeval(references, predictions, None)
    values = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
    return {kind: TypeScores(*found) for kind, found in zip(types, values, strict=True)}


def _by_seqeval(references: Iterable[Tags], predictions: Iterable[Tags], average: str | None) -> Any:
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    lists = [[list(tags) for tags in one] for one in (references, predictions)]
    score: Callable[..., Any] = precision_recall_fscore_support
    return score(*lists, average=average, zero_division=0)


def cut_entities(tags: Tags, is_seen: np.ndarray) -> int:
    """Counts the entities of a sentence with a word that the model does not see."""
    return sum(not is_seen[first : last + 1].all() for _, first, last in entities(tags))


def entity_places(tags: Tags, spans: list[Span]) -> list[tuple[str, int, int]]:
    """Type, begin and end of each entity in the sentence's text, in characters; the end is the one after the last."""
    return [(kind, spans[first][0], spans[last][1]) for kind, first, last in entities(tags)]
