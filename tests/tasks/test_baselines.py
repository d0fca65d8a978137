"""What the most frequent class and TF-IDF with a linear model score on a task's rows."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from petl_bench.config import load_config
from petl_bench.process import cache_dir
from petl_bench.records.reading import with_hash
from petl_bench.records.schema import BASELINES
from petl_bench.run.run import run
from petl_bench.tasks import baselines
from petl_bench.tasks.baselines import at_least_as_good, score_baselines
from petl_bench.tasks.load import load_task


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Loads a task of these rows, with a cache of its own."""
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))

    def load(train, validation, *settings, name="custom"):
        files = {"train": train, "validation": validation}
        for role, content in files.items():
            pd.DataFrame(content).to_json(tmp_path / f"{role}.jsonl", orient="records", lines=True)
        paths = [f"task.{role}_file={tmp_path / f'{role}.jsonl'}" for role in files]
        return load_task(load_config([f"task={name}", *paths, *settings]).task, None)

    return load


def test_the_most_frequent_class_of_the_training_rows(rows):
    train = {"text": ["a", "b", "c"], "label": ["x", "y", "y"]}
    task = rows(train, {"text": ["d", "e", "f", "g"], "label": ["x", "x", "x", "y"]}, "task.metrics=[accuracy,f1]")
    # All are taken for y: one of four is right; precision 1/4 and recall 1.
    assert score_baselines(task)["majority"] == {"accuracy": 0.25, "f1": pytest.approx(0.4)}


def test_the_mean_of_the_targets_and_ridge_regression(rows):
    train = {"text": ["good", "bad", "good", "bad"], "label": [1.0, 3.0, 1.0, 3.0]}
    regression = ["task.type=regression", "task.metrics=[mean_squared_error]", "task.metric=mean_squared_error"]
    found = score_baselines(rows(train, {"text": ["good", "bad"], "label": [0.0, 3.0]}, *regression))
    # The mean is 2: errors 4 and 1.
    assert found["majority"] == {"mean_squared_error": 2.5}
    # Two words of weight 1 and -1 around the mean: w minimises 4 (1 - w)² + 2 w², so w = 2/3.
    assert found["tfidf"] == {"mean_squared_error": pytest.approx(((2 - 2 / 3) ** 2 + (1 / 3) ** 2) / 2)}


def test_labels_that_at_least_half_the_rows_have(rows):
    train = {"text": list("abcd"), "label": ["x,y", "x", "x,z", "y"]}
    validation = {"text": list("ef"), "label": ["x,y", "z"]}
    multilabel = ["task.type=multilabel", "task.metrics=[micro_f1,subset_accuracy]", "task.metric=micro_f1"]
    # x and y for both rows: two of four are right, of three that are there.
    found = score_baselines(rows(train, validation, *multilabel))
    assert found == {"majority": {"micro_f1": pytest.approx(4 / 7), "subset_accuracy": 0.5}}


def test_the_most_frequent_tag(rows):
    train = {"tokens": [["a", "b", "c"]], "tags": [["B-p", "B-p", "O"]]}
    validation = {"tokens": [["d", "e"], ["f"]], "tags": [["B-p", "O"], ["B-p"]]}
    columns = ["task.text_columns=[tokens]", "task.label_column=tags", "task.metrics=[entity_f1,entity_precision]"]
    # B-p for every word: three entities, two of them right.
    found = score_baselines(rows(train, validation, *columns, name="tagging"))
    assert found == {"majority": {"entity_f1": pytest.approx(0.8), "entity_precision": pytest.approx(2 / 3)}}


def test_tfidf_is_that_of_scikit_learn_at_its_defaults():
    task = load_task(load_config(["task=demo", "task.num_train_examples=2000"]).task, None)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit(task.train.texts[0])
    model = LogisticRegression(tol=1e-8, max_iter=1000).fit(
        vectorizer.transform(task.train.texts[0]), task.train.labels
    )
    score = model.score(vectorizer.transform(task.report.texts[0]), task.report.labels)
    assert score_baselines(task) == {
        "majority": {"accuracy": 0.5},
        # One row of the 400 may fall on the other side of the boundary.
        "tfidf": {"accuracy": pytest.approx(score, abs=0.0026)},
    }
    assert score > 0.55


@pytest.mark.parametrize(
    ("texts", "columns"),
    [
        # What decides is in the second text of a pair; is the order of two words; is the order of two characters.
        ([("so", "yes"), ("so", "no")], ["first", "second"]),
        ([("not so good but bad", ""), ("not so bad but good", "")], ["first", "second"]),
        ([("我爱", ""), ("爱我", "")], ["first"]),
    ],
)
def test_tfidf_reads_pairs_of_texts_words_and_chinese_characters(rows, texts, columns):
    content = {name: [text[place] for text in texts * 3] for place, name in enumerate(columns)}
    content |= {"label": ["x", "y"] * 3}
    found = score_baselines(rows(content, content, f"task.text_columns=[{','.join(columns)}]"))
    assert found["majority"]["accuracy"] == 0.5
    assert found["tfidf"]["accuracy"] == 1.0


def test_tfidf_is_left_out_where_it_has_nothing_to_learn_or_would_take_too_long(rows, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    one_class = {"text": ["a", "b"], "label": ["x", "x"]}
    assert set(score_baselines(rows(one_class, one_class, "task.labels=[x,y]"))) == {"majority"}
    assert not caplog.messages
    no_words = {"text": ["!", "?"], "label": ["x", "y"]}
    assert set(score_baselines(rows(no_words, no_words))) == {"majority"}
    assert "tfidf is left out: empty vocabulary" in caplog.messages[-1]
    monkeypatch.setattr(baselines, "_MOST_WORK", 19)
    long = {"text": ["a" * 9, "b"], "label": ["x", "y"]}
    assert set(score_baselines(rows(long, long))) == {"majority"}
    assert caplog.messages[-1] == (
        "the baseline tfidf is left out: 10 characters of training texts in 2 classes would take it too long"
    )


def test_scores_are_kept_for_rows_and_made_anew_where_the_cache_is_broken(rows, monkeypatch, caplog):
    content = {"text": ["one", "two"] * 3, "label": ["x", "y"] * 3}
    task = rows(content, content)
    first = score_baselines(task)
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "_by_words", lambda _: pytest.fail("fitted again"))
        assert score_baselines(task) == first
    (file,) = (cache_dir() / "baselines").iterdir()
    file.write_text(file.read_text().replace("1.0", "0.9"))
    assert score_baselines(task) == first
    assert "are broken and made anew" in caplog.text
    file.write_text("[]")
    assert score_baselines(task) == first
    # Other rows, or other metrics, are another entry.
    score_baselines(rows(content, content, "task.metrics=[accuracy,macro_f1]"))
    score_baselines(rows(content, {"text": ["one"], "label": ["y"]}))
    assert len(list((cache_dir() / "baselines").glob("*.json"))) == 3


def test_scores_of_other_rows_are_not_believed(rows, caplog):
    content = {"text": ["one", "two"] * 3, "label": ["x", "y"] * 3}
    task = rows(content, content)
    first = score_baselines(task)
    (file,) = (cache_dir() / "baselines").glob("*.json")
    score_baselines(rows(content, {"text": ["one"], "label": ["y"]}))
    (other,) = set((cache_dir() / "baselines").glob("*.json")) - {file}
    file.write_text(other.read_text())
    assert score_baselines(task) == first
    assert f"{file} are broken and made anew (they are those of another entry)" in caplog.text
    # Those of older versions do not say whose they are.
    caplog.clear()
    file.write_text(json.dumps(with_hash({"scores": {"majority": {"accuracy": 0.25}}})))
    assert score_baselines(task) == first
    assert not caplog.text


def test_ties_go_to_the_first_class(rows):
    content = {"text": ["a", "b"], "label": ["x", "y"]}
    task = rows(content, {"text": ["c", "d", "e"], "label": ["x", "y", "y"]})
    assert score_baselines(task)["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert np.bincount(task.train.labels).tolist() == [1, 1]


def test_a_run_keeps_the_scores_and_says_them(tiny, caplog):
    caplog.set_level(logging.INFO)
    cfg = tiny("method=head", "measure.baselines=true")
    record = run(cfg)
    assert record.baselines == score_baselines(load_task(cfg.task, None))
    assert set(record.baselines) == set(BASELINES)
    shown = [f"{100 * record.baselines[name]['accuracy']:.1f}" for name in ("majority", "tfidf")]
    assert f"baselines on validation: majority accuracy {shown[0]} %, tfidf accuracy {shown[1]} %" in caplog.messages
    # What is measured is no part of the run's identity.
    without = run(tiny("method=head", "force=true"))
    assert (without.run_key, without.baselines) == (record.run_key, {})
    assert without.scores == record.scores


def test_a_run_outlives_baselines_that_fail(tiny, monkeypatch, caplog):
    def fail(task):
        raise MemoryError("too many words")

    monkeypatch.setattr(baselines, "score_baselines", fail)
    record = run(tiny("method=head", "measure.baselines=true"))
    assert (record.status, record.baselines) == ("finished", {})
    assert "the baselines could not be scored: too many words (measure.baselines=false leaves it out)" in caplog.text


def test_what_a_score_does_not_exceed_is_named():
    scores = {"majority": {"mae": 0.5}, "tfidf": {"mae": 0.3}}
    assert at_least_as_good(scores, "mae", 0.3, higher_is_better=True) == ["majority", "tfidf"]
    assert at_least_as_good(scores, "mae", 0.3, higher_is_better=False) == ["tfidf"]
    assert at_least_as_good(scores, "mae", 0.2, higher_is_better=False) == []
