"""The metrics, computed with scikit-learn, scipy and seqeval, and the entities that word tags form.

None needs the hub; `evaluate_metric` wraps each as an `evaluate.Metric`. An entity counts as
found if its type, its first and its last word are right. Tags are read by the rule of conlleval: an inner word without
a beginning begins an entity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.records.predictions import TypeScores, names_by_row

if TYPE_CHECKING:
    import evaluate

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
        RequestError: If the tag of words outside entities is missing, or the tags are of no known scheme.
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
    """The tags as entity readers expect them: a bare type of the scheme IO gets the letter I in front."""
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
    return {kind: TypeScores(*scores) for kind, scores in zip(types, values, strict=True)}


def _by_seqeval(references: Iterable[Tags], predictions: Iterable[Tags], average: str | None) -> Any:
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    lists = [[list(tags) for tags in sentences] for sentences in (references, predictions)]
    score: Callable[..., Any] = precision_recall_fscore_support
    return score(*lists, average=average, zero_division=0)


def cut_entities(tags: Tags, is_seen: np.ndarray) -> int:
    """Counts the entities of a sentence with a word that the model does not see."""
    return sum(not is_seen[first : last + 1].all() for _, first, last in entities(tags))


def entity_places(tags: Tags, spans: list[Span]) -> list[tuple[str, int, int]]:
    """Type, begin and end of each entity in the sentence's text, in characters; the end is the one after the last."""
    return [(kind, spans[first][0], spans[last][1]) for kind, first, last in entities(tags)]


Scorer = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        score: Computes it from references and predictions, both of shape (rows,): class indices, values, or of dtype
            object with the names that each row has, the tags of its words or its labels.
        task_types: The types of task that it applies to.
        higher_is_better: Whether a higher value is better.
    """

    score: Scorer
    task_types: tuple[str, ...]
    higher_is_better: bool = True


def _accuracy(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def _f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, pos_label=1, average="binary", zero_division=0.0))


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    if references.dtype != object:
        return float(f1_score(references, predictions, average="macro", zero_division=0.0))
    references, predictions = _indicators(references, predictions)
    by_label = f1_score(references, predictions, average=None, zero_division=0.0)[:-2]
    return float(by_label.mean()) if len(by_label) else 0.0


def _micro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(*_indicators(references, predictions), average="micro", zero_division=0.0))


def _subset_accuracy(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(*_indicators(references, predictions)))


def _indicators(references: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row has each label that occurs or is predicted; two more columns are for labels that no row has."""
    names = sorted({name for row in (*references, *predictions) for name in row})

    def indicators(rows: np.ndarray) -> np.ndarray:
        # scikit-learn takes one column for two classes, 0 and 1.
        return np.array([[*(name in row for name in names), False, False] for row in rows], dtype=int)

    return indicators(references), indicators(predictions)


def _entities(position: int) -> Scorer:
    def score(references: np.ndarray, predictions: np.ndarray) -> float:
        return entity_scores(references, predictions)[position]

    return score


def _balanced_accuracy(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import recall_score

    # balanced_accuracy_score gives the same, but warns where a class is predicted that has no rows.
    return float(recall_score(references, predictions, labels=np.unique(references), average="macro"))


def _matthews(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def _correlation(name: str) -> Scorer:
    def score(references: np.ndarray, predictions: np.ndarray) -> float:
        """The correlation; 0 where either side is constant."""
        from scipy import stats

        # The correlation with a constant is undefined. scikit-learn also returns 0 for Matthews' there.
        if np.ptp(references) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return float(getattr(stats, name)(references, predictions).statistic)

    return score


def _mean_squared_error(references: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean((references - predictions) ** 2))


METRICS: dict[str, MetricSpec] = {
    "accuracy": MetricSpec(_accuracy, ("classification",)),
    "f1": MetricSpec(_f1, ("classification",)),
    "macro_f1": MetricSpec(_macro_f1, ("classification", "multilabel")),
    "balanced_accuracy": MetricSpec(_balanced_accuracy, ("classification",)),
    "matthews_correlation": MetricSpec(_matthews, ("classification",)),
    "pearson": MetricSpec(_correlation("pearsonr"), ("regression",)),
    "spearman": MetricSpec(_correlation("spearmanr"), ("regression",)),
    "mean_squared_error": MetricSpec(_mean_squared_error, ("regression",), higher_is_better=False),
    "micro_f1": MetricSpec(_micro_f1, ("multilabel",)),
    "subset_accuracy": MetricSpec(_subset_accuracy, ("multilabel",)),
    "entity_f1": MetricSpec(_entities(2), ("tagging",)),
    "entity_precision": MetricSpec(_entities(0), ("tagging",)),
    "entity_recall": MetricSpec(_entities(1), ("tagging",)),
}


def check_metrics(names: list[str], task_type: str, num_labels: int) -> None:
    """Checks that metrics are known and fit the task.

    Raises:
        RequestError: If one is unknown or does not fit.
    """
    for name in names:
        if name not in METRICS:
            raise unknown_choice("task.metrics", name, METRICS)
        if task_type not in METRICS[name].task_types:
            fitting = [other for other, spec in METRICS.items() if task_type in spec.task_types]
            raise RequestError(f"task.metrics: {name} does not fit task.type={task_type}; {', '.join(fitting)} do.")
        if name == "f1" and num_labels != 2:
            raise RequestError(f"task.metrics: f1 is for two classes, this task has {num_labels}: use macro_f1.")


def compute_metrics(names: list[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Scores predictions.

    Args:
        names: Keys of `METRICS`.
        predictions: Class indices, values, or names (of dtype object), shape (rows,).
        references: The labels, likewise.

    Returns:
        The value of each metric, by its name.
    """
    scores = {}
    for name in names:
        kind: Any = object
        if references.dtype != object:
            # Single precision would round means and correlations.
            kind = "float64" if "regression" in METRICS[name].task_types else "int64"
        scores[name] = METRICS[name].score(np.asarray(references, kind), np.asarray(predictions, kind))
    return scores


def evaluate_metric(name: str) -> evaluate.Metric:
    """Returns one of the metrics as a metric of the evaluate library.

    Runs compute metrics directly. Nothing is fetched from the hub and nothing is written to disk.

    Args:
        name: A key of `METRICS`.
    """
    import datasets
    import evaluate

    spec = METRICS[name]
    in_names = spec.task_types[0] in ("multilabel", "tagging")
    kinds = {"classification": datasets.Value("int64"), "regression": datasets.Value("float64")}
    kind = kinds.get(spec.task_types[0], datasets.List(datasets.Value("string")))

    class TaskMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=f"{name} as computed by scikit-learn, scipy or seqeval",
                citation="",
                features=datasets.Features({"predictions": kind, "references": kind}),
            )

        def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
            as_array = names_by_row if in_names else np.asarray
            columns = [as_array(values) for values in (references, predictions)]
            return {name: spec.score(*columns)}

    # In memory: the default is a cache file that parallel runs would share.
    return TaskMetric(config_name=name, keep_in_memory=True)
