"""`data=FILE`: which columns hold texts and labels, where there is no doubt, and settings with any character."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from petl_bench.cli import main
from petl_bench.config import load_config, with_data
from petl_bench.errors import RequestError
from petl_bench.settings import as_setting, as_value, compose_options
from petl_bench.tasks.columns import data_settings


def settings(tmp_path, header, row, rows=40, name="mine.csv", **given):
    file = tmp_path / name
    file.write_text(header + "\n" + "".join(row.format(n=n, two=n % 2, half=n / 2 + 0.25) + "\n" for n in range(rows)))
    task = load_config(data_settings(str(file), given)[0]).task
    return task.text_columns, task.label_column


@pytest.mark.parametrize(
    ("header", "row", "texts", "label"),
    [
        ("id,text,queue", "{n},some words {n},q{two}", ["text"], "queue"),
        ("Label,comment", "{two},a comment of many words {n}", ["comment"], "Label"),
        ("id,message,kind", "{n},some words {n},k{two}", ["message"], "kind"),
        ("sentence1,sentence2,label", "one text {n},another text {n},{two}", ["sentence1", "sentence2"], "label"),
        # The only other column holds texts, however short.
        ("word,label", "w{n},{two}", ["word"], "label"),
        ("my text,the label", "some words {n},{two}", ["my text"], "the label"),
    ],
)
def test_columns_that_speak_for_themselves_are_taken(tmp_path, header, row, texts, label):
    assert settings(tmp_path, header, row) == (texts, label)


@pytest.mark.parametrize(
    ("header", "row", "sentence"),
    [
        ("text,label", "some words {n},{half}", "task.label_column=NAME"),
        ("text,label,class", "some words {n},{two},{two}", "'label', 'class' all look like it"),
        ("a,b,label", "some words {n},other words {n},{two}", "'a', 'b' all hold texts"),
        ("a,b,label", "{n},{n},{two}", "none holds texts of several words"),
    ],
)
def test_where_there_is_doubt_the_name_is_asked_for(tmp_path, header, row, sentence):
    with pytest.raises(RequestError, match=sentence):
        settings(tmp_path, header, row)


def test_columns_that_are_given_are_not_looked_for(tmp_path):
    given = {"task.label_column": "kind"}
    header, row = "text,kind,part", "some words {n},{two},{two}"
    (tmp_path / "mine.csv").write_text(f"{header}\n" + "".join(row.format(n=n, two=n % 2) + "\n" for n in range(9)))
    found, _ = data_settings(str(tmp_path / "mine.csv"), given)
    assert [one.partition("=")[0] for one in found] == ["task", "task.name", "task.train_file", "task.text_columns"]


@pytest.mark.parametrize(
    ("file", "given", "name"),
    [
        ("tickets.csv", {}, "tickets"),
        ("my rows (new).csv", {}, "my-rows-new"),
        ("tickets.csv", {"task.name": "mine"}, None),
        # Their rows are others than those of the tasks of the package.
        ("cola.csv", {}, "custom"),
        ("....csv", {}, "custom"),
    ],
)
def test_the_task_has_the_name_of_its_file(tmp_path, file, given, name):
    (tmp_path / file).write_text("text,label\n" + "".join(f"some words {n},{n % 2}\n" for n in range(9)))
    named = [one for one in data_settings(str(tmp_path / file), given)[0] if one.startswith("task.name=")]
    assert load_config(["task=custom", "task.train_file=x.csv", *named]).task.name == (name or "custom")


PATHS = ["a b.csv", "it's", "c:\\x\\", "back\\'q", "plain/x.csv", "a=b,c[d]", "\\\\'", "\\\n"]

# Texts that Hydra or OmegaConf would take for numbers, for words of their own or for instructions.
INSTRUCTIONS = [
    *("null", "True", "nan", "-inf", "2024_05", "1.50", "1e3", "+5", "é", "٣"),
    *("${oc.env:HOME}.csv", "text ${x}", "\\${x}", "it's \\\\${x}\\", "$\\{${"),
]


@pytest.mark.parametrize("path", PATHS + INSTRUCTIONS)
def test_a_path_with_any_character_is_read_as_it_is(path):
    settings = ["task=custom", as_setting("task.train_file", path), f"task.text_columns=[{as_value(path)},b]"]
    task = load_config(settings).task
    assert (task.train_file, task.text_columns) == (path, [path, "b"])
    composed = OmegaConf.to_container(compose_options("config", settings).task, resolve=True)
    assert (composed["train_file"], composed["text_columns"]) == (path, [path, "b"])


def test_numbers_stay_numbers():
    assert as_setting("train.epochs", 3) == "train.epochs=3"
    assert load_config([as_setting("train.epochs", "3"), as_setting("train.learning_rate", 1e-3)]).train.epochs == 3


def test_a_name_that_means_a_missing_value_is_refused():
    with pytest.raises(RequestError, match=r"'\?\?\?' means a missing value in the settings: rename"):
        as_setting("task.label_column", "???")


@pytest.mark.parametrize("name", ["text ${oc.env:HOME}", "null", "2020_01", "1e3"])
def test_columns_and_files_of_any_name_are_read_as_they_are(tmp_path, name):
    header, row = f"{name},label", "some words {n},{two}"
    assert settings(tmp_path, header, row, name=f"{name}.csv") == ([name], "label")


def test_names_in_quotation_marks_are_those_of_the_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"some words {n},{n % 2},{n % 2},{n % 3}\n" for n in range(12))
    Path("mine.csv").write_text(f"text,my label,my group,kind\n{rows}")
    given = ['task.label_column="my label"', "task.group_column='my group'"]
    task = load_config(with_data(["data=mine.csv", *given, "+task.also_report={}"], adjust_training=False)).task
    assert (task.text_columns, task.label_column, task.group_column) == (["text"], "my label", "my group")
    with pytest.raises(RequestError, match=r"task\.label_column: the value"):
        with_data(["data=mine.csv", "task.label_column='my label"], adjust_training=False)


def test_run_takes_a_file_and_says_what_it_took(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # The largest class has more than five times the rows of the smallest, and texts are longer than the limit.
    rows = [f"{'word ' * 30}{n},{'ab'[n % 10 == 0]}" for n in range(100)]
    (tmp_path / "mine.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    small = ["backbone=tiny_bert", "train.max_steps=1", "task.max_length=16", "measure.ledger=false"]
    assert main(["run", "data=mine.csv", *small, "measure.inference=false"]) == 0
    err = capsys.readouterr().err
    assert "text column 'text', label column 'label'" in err
    assert "task.metric=macro_f1 weighs all classes alike" in err
    assert "would keep 95 % of train" in err
    # One update is too few, and that is said.
    assert re.search(r"the method scores no better than (majority|tfidf)", err)
    # 80 rows train; settings that are given stay.
    lengths = ["train.batch_size=16", "train.epochs=20"]
    assert with_data(["data=mine.csv"], adjust_training=True)[-2:] == lengths
    assert "train.batch_size=16, train.epochs=20, as rows are few" in capsys.readouterr().err
    assert with_data(["data=mine.csv", "train.epochs=2"], adjust_training=True)[-2:] == [lengths[0], "train.epochs=2"]
    for given in ("train.max_steps=9", "train=mine"):
        assert not set(lengths) & set(with_data(["data=mine.csv", given], adjust_training=True))
    assert not set(lengths) & set(with_data(["data=mine.csv"], adjust_training=False))
    assert main(["run", "data=mine.csv", "task=mrpc"]) == 2
    assert "give one file, and no other task" in capsys.readouterr().err


def test_the_length_that_keeps_most_tokens():
    """Ten rows of 10 tokens and one of 100: of 200 tokens 190 stay where the longest row keeps 90."""
    from types import SimpleNamespace

    import numpy as np

    from petl_bench.run import describe
    from petl_bench.tasks.rows import Rows

    lengths = np.array([100, *[10] * 10])
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(describe, "encode", lambda *_, **__: SimpleNamespace(lengths=lengths))
    try:
        task = SimpleNamespace(train=Rows((["x"] * 11,), None))
        assert describe._length_that_keeps(task, None) == 90
    finally:
        monkeypatch.undo()


def test_the_column_of_groups_is_none_of_labels(tmp_path):
    header, row = "text,kind,document", "some words {n},{two},{two}"
    with pytest.raises(RequestError, match="'kind', 'document' all look like it"):
        settings(tmp_path, header, row)
    assert settings(tmp_path, header, row, **{"task.group_column": "document"}) == (["text"], "kind")
