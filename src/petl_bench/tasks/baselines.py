"""Scores on a task's rows without a backbone: of the most frequent class, and of a linear model of words.

A method that is no better than these has gained nothing from the backbone over the words alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

from petl_bench.process import cache_dir
from petl_bench.records.predictions import names_by_row
from petl_bench.records.reading import HASH_FIELD, check_hash, validate, with_hash
from petl_bench.records.store import read_json, write_json
from petl_bench.tasks.load import Task
from petl_bench.tasks.metrics import compute_metrics, entity_tags
from petl_bench.tasks.rows import Rows

Scores = dict[str, dict[str, float]]

# Cached scores of another version are not read.
_VERSION = 1

# Characters of the training texts times classes, beyond which tfidf is left out: about half a minute.
_MOST_WORK = 10**8

# Runs of letters and digits; Chinese characters are words of their own, so that their pairs are features.
_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = rf"(?u)[{_CHINESE}]|[^\W{_CHINESE}]+"

_log = logging.getLogger(__name__)


def at_least_as_good(baselines: Scores, metric: str, score: float, *, higher_is_better: bool) -> list[str]:
    """The baselines that a score does not exceed.

    Args:
        baselines: The metrics of each baseline, as `score_baselines` gives them.
        metric: The metric to compare by.
        score: The score of a trained model.
        higher_is_better: Which way the metric is better.

    Returns:
        Their names.
    """
    sign = 1 if higher_is_better else -1
    return [name for name, scores in baselines.items() if sign * scores[metric] >= sign * score]


def score_baselines(task: Task) -> Scores:
    """Scores the baselines on the rows to report on, or reads the scores from the cache.

    Args:
        task: The baselines are fitted to its training rows, without a search of settings.

    Returns:
        The task's metrics by baseline, a key of `petl_bench.records.schema.BASELINES`. `tfidf` is missing where a row
        has several labels or tags, where all training rows are of one class, and where it would take too long.
    """
    settings = task.settings
    made_by = [_VERSION, version("scikit-learn"), settings.type, settings.metrics, task.fingerprint()]
    file = cache_dir() / "baselines" / f"{hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]}.json"
    if (cached := _read_cached(file)) is not None:
        return cached
    in_names = settings.type in ("tagging", "multilabel")
    references = task.given_names(task.report) if in_names else task.report.labels
    assert references is not None
    predicted = {"majority": _most_frequent(task), "tfidf": _by_words(task)}
    scores = {
        name: compute_metrics(settings.metrics, values, references)
        for name, values in predicted.items()
        if values is not None
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, with_hash({"entry": file.stem, "scores": scores}))
    except OSError as error:
        _log.warning("the scores of the baselines could not be cached in %s (%s)", file.parent, error)
    return scores


def _read_cached(file: Path) -> Scores | None:
    """The scores in a file of the cache; None where there is none, or one that is broken or of another entry."""
    try:
        content = read_json(file)
        check_hash(content)
        # Entries of older versions do not say which they are.
        if "entry" not in content or HASH_FIELD not in content:
            return None
        if content["entry"] != file.stem:
            raise ValueError("they are those of another entry")
        return validate(Scores, content["scores"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        _log.warning("the cached scores of the baselines in %s are broken and made anew (%s)", file, error)
        return None


def _most_frequent(task: Task) -> np.ndarray:
    """The most frequent class or tag for every row or word, the labels of at least half the rows, or the mean."""
    given, num_rows = task.train.labels, len(task.report)
    assert given is not None
    if task.labels is None:
        return np.full(num_rows, given.mean())
    if task.settings.type == "multilabel":
        names = [task.labels[index] for index in np.flatnonzero(given.mean(axis=0) >= 0.5)]
        return names_by_row([names] * num_rows)
    if task.settings.type == "tagging":
        tag = entity_tags(task.labels)[np.bincount(np.concatenate(given)).argmax()]
        return names_by_row([tag] * len(of_row) for of_row in task.tags(task.report))
    return np.full(num_rows, np.bincount(given).argmax())


def _by_words(task: Task) -> np.ndarray | None:
    """What TF-IDF with a linear model predicts for every row; None where it is left out."""
    given = task.train.labels
    assert given is not None
    if task.settings.type in ("multilabel", "tagging") or (task.labels and len(np.unique(given)) < 2):
        return None
    texts, num_classes = _texts(task.train), len(task.labels or ()) or 1
    if (characters := sum(map(len, texts))) * num_classes > _MOST_WORK:
        _log.info(
            "the baseline tfidf is left out: %s characters of training texts in %d classes would take it too long",
            *(f"{characters:,}", num_classes),
        )
        return None
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    # All solvers reach the same optimum; with few rows this one is the fastest, and it draws nothing at random.
    linear = Ridge() if task.labels is None else LogisticRegression(solver="newton-cg")
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), token_pattern=_WORD), linear)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            predicted: np.ndarray = model.fit(texts, given).predict(_texts(task.report))
    except ValueError as error:  # no text holds a word
        _log.info("the baseline tfidf is left out: %s", error)
        return None
    return predicted


def _texts(rows: Rows) -> list[str]:
    """One text a row: those of a pair are joined."""
    return ["\n".join(texts) for texts in zip(*rows.texts, strict=True)]
