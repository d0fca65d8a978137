"""Which rows are held out of the training rows: at random, of each class its share, or whole groups."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from petl_bench.config import load_config, resolved
from petl_bench.errors import RequestError
from petl_bench.run.lifecycle import identify
from petl_bench.tasks.draw import _of_each_class
from petl_bench.tasks.load import load_task

# 60 rows of a, 25 of b, 14 of c, 1 of d: a fifth is 20 rows.
CLASSES = ["a"] * 60 + ["b"] * 25 + ["c"] * 14 + ["d"]


def write(file, **columns):
    frame = {"text": [f"text {i}" for i in range(len(CLASSES))], "label": CLASSES} | columns
    pd.DataFrame(frame).to_csv(file, index=False)
    return f"task.train_file={file}"


def load(*overrides):
    return load_task(resolved(load_config(["task=custom", *overrides])).task, None)


def counts(task, rows):
    return Counter(task.labels[label] for label in rows.labels)


def test_a_users_file_is_held_out_of_by_class_and_a_class_of_one_row_trains(tmp_path):
    task = load(write(tmp_path / "rows.csv"))
    # 20 of 99 rows: 60 -> 12.12, 25 -> 5.05, 14 -> 2.83; the largest remainder gets the row that is left.
    assert counts(task, task.report) == {"a": 12, "b": 5, "c": 3}
    assert counts(task, task.train) == {"a": 48, "b": 20, "c": 11, "d": 1}
    assert set(task.train.texts[0]) | set(task.report.texts[0]) == {f"text {i}" for i in range(100)}


def test_rows_held_out_by_class_do_not_depend_on_how_many_train(tmp_path):
    file = write(tmp_path / "rows.csv")
    whole, few = load(file), load(file, "task.num_train_examples=10")
    assert few.report.texts == whole.report.texts
    assert len(few.train) == 10
    assert set(few.train.texts[0]) <= set(whole.train.texts[0])
    assert load(file, "task.data_seed=7").report.texts != whole.report.texts


def test_a_class_that_would_lose_its_last_row_is_not_held_out_by_share():
    order = np.arange(10)
    # 8 of 10 rows: 8 -> 6.4, 2 -> 1.6, and the second class would have no row left.
    assert _of_each_class(np.array([0] * 8 + [1] * 2), order, 8) is None
    assert _of_each_class(np.arange(10), order, 2) is None
    # Fewer held-out rows than classes: 0.4 of each, and the first two get one.
    assert _of_each_class(np.repeat(np.arange(5), 2), order, 2).tolist() == [0, 2]


def test_at_random_gives_the_rows_of_before_and_the_key_of_before(tmp_path):
    file = write(tmp_path / "rows.csv")
    order = np.random.default_rng(42).permutation(100)
    task = load(file, "task.held_out_draw=random")
    assert task.report.texts[0] == [f"text {i}" for i in sorted(order[80:])]

    def key(*overrides):
        return identify(load_config(["task=custom", "backbone=tiny_bert", file, *overrides])).key

    assert key("task.held_out_draw=random") != key()
    # Where no row is held out, there are no classes, or these decide on the training rows, the setting has no effect.
    for rest in (
        ["task.rows_per_class=1"],
        [f"task.validation_file={tmp_path / 'rows.csv'}"],
        ["task.type=regression", "task.metrics=[pearson]", "task.metric=pearson"],
    ):
        assert key("task.held_out_draw=random", *rest) == key(*rest)
    assert resolved(load_config(["task=mrpc"])).task.held_out_draw == "random"


def test_rows_of_a_group_stay_together(tmp_path):
    groups = [f"document {i % 9}" for i in range(100)]
    file = write(tmp_path / "rows.csv", document=groups)
    task = load(file, "task.group_column=document")
    held_out, train = set(task.report.groups), set(task.train.groups)
    assert not held_out & train
    assert held_out | train == set(groups)
    # Each document has 11 or 12 rows, so two of them have the 20 rows that are asked for.
    assert len(held_out) == 2
    assert load(file, "task.group_column=document").report.texts == task.report.texts
    assert load(file, "task.group_column=document", "task.data_seed=1").report.texts != task.report.texts


def test_equal_texts_stay_together_where_the_texts_are_the_groups(tmp_path):
    task = load(write(tmp_path / "rows.csv", text=[f"text {i % 40}" for i in range(100)]), "task.group_column=text")
    assert not set(task.report.texts[0]) & set(task.train.texts[0])
    assert 20 <= len(task.report) <= 22


def test_groups_hold_when_few_rows_train_and_for_regression_and_tagging(tmp_path):
    groups = [i // 10 for i in range(100)]
    file = write(tmp_path / "rows.csv", label=list(range(100)), document=groups)
    regression = ["task.type=regression", "task.metrics=[pearson]", "task.metric=pearson"]
    task = load(file, "task.group_column=document", "task.num_train_examples=30", *regression)
    assert (len(task.train), len(task.report)) == (30, 20)
    assert not set(task.report.groups) & set(task.train.groups)
    tagged = pd.DataFrame(
        {"tokens": [["a", "b"]] * 50, "tags": [["O", "B-x"]] * 50, "doc": [i % 10 for i in range(50)]}
    )
    tagged.to_json(tmp_path / "tagged.jsonl", orient="records", lines=True)
    settings = ["task=tagging", f"task.train_file={tmp_path / 'tagged.jsonl'}", "task.text_columns=[tokens]"]
    cfg = load_config([*settings, "task.label_column=tags", "task.group_column=doc"])
    task = load_task(cfg.task, None)
    assert len(task.report) == 10
    assert not set(task.report.groups) & set(task.train.groups)


@pytest.mark.parametrize(
    ("groups", "settings", "sentence"),
    [
        (["x"] * 100, ["task.group_column=document"], "leaves none of the 1 groups to train on"),
        (
            ["x"] * 99 + [None],
            ["task.group_column=document"],
            r"rows.csv, line 101: task.group_column=document is empty",
        ),
        (["x"] * 100, ["task.group_column=docs"], "task.group_column=docs is not a column of the training rows"),
        (["x"] * 100, ["task.group_column=label"], "task.group_column and task.label_column are both 'label'"),
        (["x"] * 100, ["task.held_out_draw=stratify"], "stratified"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(tmp_path, groups, settings, sentence):
    file = write(tmp_path / "rows.csv", document=groups)
    with pytest.raises(RequestError, match=sentence):
        load(file, *settings)


def test_a_column_of_groups_that_is_not_there_is_refused_where_no_row_is_held_out_either(tmp_path):
    file = write(tmp_path / "rows.csv")
    with pytest.raises(RequestError, match=r"task.group_column=document is not a column of the training rows"):
        load(file, f"task.validation_file={tmp_path / 'rows.csv'}", "task.group_column=document")


def test_generated_rows_have_no_column_of_groups():
    with pytest.raises(RequestError, match="task=demo is generated"):
        resolved(load_config(["task=demo", "task.group_column=document"]))
