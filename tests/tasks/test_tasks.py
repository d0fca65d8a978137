"""Tasks: rows and labels from every source, protocols, and what is said of broken input."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.run.describe import log_rows, log_tokens
from petl_bench.tasks.draw import demo_rows
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import load_task

SIZES = {  # of the shared copy; QNLI, QQP and MNLI are partial there
    "cola": (8551, 1043),
    "mrpc": (3668, 408),
    "rte": (2490, 277),
    "sst2": (67349, 872),
    "stsb": (5749, 1500),
    "wnli": (635, 71),
    "qnli": (20534, 5463),
    "qqp": (43833, 8403),
    "mnli": (27571, 7703),
}


def load(*overrides: str, root=None):
    return load_task(load_config(list(overrides)).task, None if root is None else str(root))


def pairs(rows):
    return set(zip(*rows.texts, strict=True))


@pytest.fixture
def table():
    return pd.DataFrame({"text": [f"text {i}" for i in range(30)], "label": ["no", "yes", "maybe"] * 10})


def write(table: pd.DataFrame, file):
    if file.suffix in (".jsonl", ".json"):
        table.to_json(file, orient="records", lines=True)
    elif file.suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="\t" if file.suffix == ".tsv" else ",")
    return file


@pytest.mark.parametrize("name", SIZES)
def test_glue_rows(name, glue):
    task = load(f"task={name}", root=glue)
    assert (len(task.train), len(task.report)) == SIZES[name]
    assert task.report is task.selection
    assert len(task.train.texts) == len(task.settings.text_columns)
    if name == "stsb":
        assert task.labels is None
        assert (task.train.labels.min(), task.train.labels.max()) == (0.0, 5.0)
    else:
        assert set(task.train.labels) == set(range(len(task.labels)))


def test_glue_label_names_are_the_datasets(glue):
    names = {}
    for config in (glue / "README.md").read_text().split("- config_name: ")[1:]:
        lines = config.splitlines()
        labels = [line.split(": ")[1] for line in lines if line.strip().startswith(("'0'", "'1'", "'2'"))]
        if labels:
            names.setdefault(lines[0].strip(), labels)
    for name in SIZES.keys() - {"stsb"}:
        assert list(load_config([f"task={name}"]).task.labels) == names[name], name


def test_mnli_reports_both_validation_sets_and_leaves_unlabelled_diagnostics_out(glue):
    task = load("task=mnli", "task.num_train_examples=100", root=glue)
    assert {name: len(extra.rows) for name, extra in task.extra.items()} == {"mismatched": 1000}
    assert task.report_split == "validation_matched"


def test_mnli_scores_the_diagnostics_where_they_are_labelled(tmp_path):
    for split, labels in [
        ("train", [0, 1, 2]),
        ("validation_matched", [0, 1, 2]),
        ("validation_mismatched", [0, 1, 2]),
    ]:
        _write_split(tmp_path, "mnli", split, labels)
    _write_split(tmp_path, "ax", "test", [2, 1, 0])
    task = load("task=mnli", root=tmp_path)
    assert set(task.extra) == {"mismatched", "ax"}
    assert task.extra["ax"].metrics == ["matthews_correlation"]


def _write_split(root, subset, split, labels):
    (root / subset).mkdir(exist_ok=True)
    rows = {"premise": ["a"] * len(labels), "hypothesis": ["b"] * len(labels), "label": labels}
    pd.DataFrame(rows).to_parquet(root / subset / f"{split}-00000-of-00001.parquet")


def test_low_resource_rows_are_drawn_by_the_data_seed_alone(glue):
    drawn = [load("task=rte", "task.num_train_examples=100", f"train.seed={seed}", root=glue) for seed in (0, 1)]
    assert drawn[0].train.texts == drawn[1].train.texts
    other = load("task=rte", "task.num_train_examples=100", "task.data_seed=7", root=glue)
    assert other.train.texts != drawn[0].train.texts
    larger = load("task=rte", "task.num_train_examples=500", root=glue)
    assert pairs(drawn[0].train) < pairs(larger.train)


def test_without_a_validation_split_training_rows_take_its_place(glue):
    task = load("task=rte", "task.num_train_examples=100", "task.validation_split=null", root=glue)
    assert task.rows_per_split() == {"train": 100, "train_held_out": 498}
    assert (task.selection_split, task.report_split) == ("train_held_out", "train_held_out")
    assert not {*zip(*task.train.texts, strict=True)} & {*zip(*task.report.texts, strict=True)}
    with pytest.raises(RequestError, match=r"held_out needs task\.validation_split"):
        load("task=rte", "task.protocol=held_out", "task.validation_split=null", root=glue)


def test_the_held_out_protocol_keeps_selection_and_report_apart(glue):
    task = load("task=rte", "task.num_train_examples=100", "task.protocol=held_out", root=glue)
    assert (len(task.train), len(task.selection), len(task.report)) == (100, 1000, 277)
    assert not pairs(task.train) & pairs(task.selection)
    assert (task.selection_split, task.report_split) == ("train_held_out", "validation")
    assert task.rows_per_split() == {"train": 100, "train_held_out": 1000, "validation": 277}
    whole = load("task=rte", "task.protocol=held_out", root=glue)
    assert len(whole.train) == 2490 - 1000


def test_held_out_rows_that_leave_nothing_to_train_on_are_refused(glue):
    with pytest.raises(RequestError, match="635 training rows"):
        load("task=wnli", "task.protocol=held_out", root=glue)


def test_the_hidden_test_labels_are_not_trained_on(glue):
    with pytest.raises(RequestError, match="hides its labels"):
        load("task=rte", "task.train_split=test", root=glue)


def test_a_missing_split_names_the_folder(tmp_path):
    with pytest.raises(RequestError, match=r"mrpc/train-\*\.parquet"):
        load("task=mrpc", root=tmp_path)


def test_a_truncated_file_is_named(glue, tmp_path):
    (tmp_path / "rte").mkdir()
    for file in (glue / "rte").glob("*.parquet"):
        content = file.read_bytes()
        (tmp_path / "rte" / file.name).write_bytes(content[: len(content) // 2] if "train" in file.name else content)
    with pytest.raises(RequestError, match=r"train-00000-of-00001\.parquet is truncated"):
        load("task=rte", root=tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_custom_rows_in_every_format(suffix, table, tmp_path):
    train, dev = write(table, tmp_path / f"train{suffix}"), write(table.head(6), tmp_path / f"dev{suffix}")
    task = load("task=custom", f"task.train_file={train}", f"task.validation_file={dev}")
    assert task.labels == ["maybe", "no", "yes"]
    assert task.train.texts[0][:2] == ["text 0", "text 1"]
    assert task.train.labels[:3].tolist() == [1, 2, 0]
    assert len(task.report) == 6


def test_custom_rows_without_a_validation_file_hold_some_out(table, tmp_path):
    train = write(table, tmp_path / "train.csv")
    task = load("task=custom", f"task.train_file={train}")
    assert (len(task.train), len(task.report)) == (24, 6)
    assert task.report_split == task.selection_split == "train_held_out"


def test_custom_regression_and_numeric_labels(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b", "c", "d", "e"], "label": [0.5, 1.0, 2.25, 3.0, 4.0]})
    train = write(frame, tmp_path / "train.csv")
    regression = ["task.type=regression", "task.metrics=[pearson]", "task.metric=pearson"]
    task = load("task=custom", f"task.train_file={train}", *regression)
    assert task.labels is None
    assert task.train.labels.dtype == np.float64
    whole = write(
        pd.DataFrame({"text": list("abcdefghij"), "label": [10, 2, 10, 2, 1, 1, 2, 10, 1, 2]}), tmp_path / "n.csv"
    )
    assert load("task=custom", f"task.train_file={whole}").labels == ["1", "2", "10"]


def test_words_that_pandas_takes_for_missing_stay_words(tmp_path):
    train = tmp_path / "train.csv"
    train.write_text("text,label\nnull,NA\nNone,b\nx,NA\ny,b\nz,b\n")
    task = load("task=custom", f"task.train_file={train}", "task.validation_file=" + str(train))
    assert task.train.texts[0][:2] == ["null", "None"]
    assert task.labels == ["NA", "b"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.text_columns=[txt]"], "'txt' is not a column"),
        (["task.label_column=lable"], "lable is not a column"),
        (["task.labels=[no,yes]"], r"'maybe' is none of task.labels=\['no', 'yes'\]\.$"),
        (
            [f"task.labels=[{','.join(f'class{number}' for number in range(150))}]"],
            r"is none of task.labels=\['class0', .*, 'class19', \.\.\.\] \(150 in all\)\.$",
        ),
        (["task.type=regression", "task.metrics=[pearson]", "task.metric=pearson"], "is not numeric"),
        (["task.metrics=[f1]", "task.metric=f1"], "use macro_f1"),
        (["task.metrics=[acuracy]", "task.metric=acuracy"], "Did you mean 'accuracy'"),
        (["task.metrics=[pearson]", "task.metric=pearson"], "does not fit task.type=classification"),
        (["task.validation_file=nowhere.csv"], "no such file"),
        (["task.validation_file=rows.txt"], "the ending must be one of"),
        (["task.protocol=held_out"], "needs task.validation_file"),
        (["task.num_train_examples=1000"], "do not fit into the 30 training rows"),
    ],
)
def test_custom_requests_that_cannot_work(overrides, words, table, tmp_path):
    train = write(table, tmp_path / "train.csv")
    with pytest.raises(RequestError, match=words):
        load("task=custom", f"task.train_file={train}", *overrides)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"text": "a"'), ("b.parquet", "PAR1 not really"), ("c.csv", "")]
)
def test_broken_files_are_named(name, content, tmp_path):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(RequestError, match=name):
        load("task=custom", f"task.train_file={file}", "task.labels=[a,b]")


def test_a_row_without_a_label_is_pointed_at(tmp_path):
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(json.dumps({"text": "a", "label": label}) for label in ["x", None, "y"]))
    with pytest.raises(RequestError, match=r"train\.jsonl, line 2 has no label"):
        load("task=custom", f"task.train_file={train}")


def test_demo_splits_are_balanced_disjoint_and_follow_their_seed():
    splits = {name: demo_rows(name, 42) for name in ("train", "validation", "test")}
    texts = [set(rows.texts[0]) for rows in splits.values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 4800
    assert all(rows.labels.mean() == 0.5 for rows in splits.values())
    assert demo_rows("validation", 42).texts == splits["validation"].texts
    assert demo_rows("validation", 43).texts != splits["validation"].texts


def test_a_bag_of_words_is_not_enough_for_the_demo():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, validation = demo_rows("train", 42), demo_rows("validation", 42)
    vectorizer = CountVectorizer(token_pattern=r"[a-z]+").fit(train.texts[0])
    model = LogisticRegression(max_iter=1000).fit(vectorizer.transform(train.texts[0]), train.labels)
    score = model.score(vectorizer.transform(validation.texts[0]), validation.labels)
    assert 0.55 < score < 0.85


class TestOnTheScreen:
    def test_rows_and_classes_with_their_shares(self, table, tmp_path, caplog):
        train = write(table[:9], tmp_path / "train.csv")
        dev = write(pd.concat([table[8:12], table[:1]]), tmp_path / "dev.csv")
        table.loc[9, "label"] = "rare"
        with caplog.at_level(logging.INFO):
            log_rows(load("task=custom", f"task.train_file={train}", f"task.validation_file={dev}"))
        assert caplog.messages == [
            "rows: 9 train, 5 validation",
            "3 classes of the training rows: 'maybe' 33.3 %, 'no' 33.3 %, 'yes' 33.3 %",
            "fewer than 5 training rows for 3 of 3 classes: 'maybe' (3), 'no' (3), 'yes' (3)",
            f"2 of 5 rows of validation are training rows too, the first of them {dev}, line 2 (equal to {train}, "
            "line 10)",
        ]

    def test_many_classes_and_repeated_rows(self, tmp_path, caplog):
        labels = [f"c{i}" for i in range(9)] + ["c0", "c0", "c1"]
        frame = pd.DataFrame({"text": ["a", "a", *map(str, range(10))], "label": labels})
        train, dev = write(frame, tmp_path / "train.csv"), write(frame.assign(text="other"), tmp_path / "dev.csv")
        with caplog.at_level(logging.INFO):
            log_rows(load("task=custom", f"task.train_file={train}", f"task.validation_file={dev}"))
        assert caplog.messages[1:] == [
            "9 classes of the training rows: 'c0' 25.0 %, 'c1' 16.7 %, ..., 'c7' 8.3 %, 'c8' 8.3 %",
            "fewer than 5 training rows for 9 of 9 classes: 'c0' (3), 'c1' (2), ..., 'c7' (1), 'c8' (1)",
            "1 training rows have the texts of another training row",
        ]

    def test_classes_that_are_scored_but_not_trained_and_labels_of_few_rows(self, tmp_path, caplog):
        train = write(pd.DataFrame({"text": list("abcdefg"), "label": ["x"] * 6 + ["y"]}), tmp_path / "train.csv")
        dev = write(pd.DataFrame({"text": list("hijk"), "label": ["z", "x", "z", "w"]}), tmp_path / "dev.csv")
        files = [f"task.train_file={train}", f"task.validation_file={dev}"]
        caplog.set_level(logging.WARNING, logger="petl_bench")
        load_named = lambda *more: log_rows(load("task=custom", *files, "task.labels=[w,x,y,z]", *more))  # noqa: E731
        load_named()
        assert caplog.messages == [
            "fewer than 5 training rows for 3 of 4 classes: 'w' (0), 'y' (1), 'z' (0)",
            "3 rows of validation are of classes without a training row: 'w', 'z'",
        ]
        caplog.clear()
        load_named("task.type=multilabel", "task.metrics=[micro_f1]", "task.metric=micro_f1")
        assert caplog.messages[0] == "fewer than 5 training rows for 3 of 4 classes: 'w' (0), 'y' (1), 'z' (0)"

    def test_few_rows_of_each_class_that_were_asked_for_are_no_surprise(self, table, tmp_path, caplog):
        train, dev = write(table, tmp_path / "train.csv"), write(table.assign(text="other"), tmp_path / "dev.csv")
        files = [f"task.train_file={train}", f"task.validation_file={dev}"]
        caplog.set_level(logging.WARNING, logger="petl_bench")
        log_rows(load("task=custom", *files, "task.rows_per_class=2"))
        assert caplog.messages == []

    def test_rows_are_numbered_as_in_their_files_and_groups_on_both_sides_are_told(self, table, tmp_path, caplog):
        table["document"] = [row // 6 for row in range(30)]
        train, dev = write(table[:18], tmp_path / "train.parquet"), write(table[14:25], tmp_path / "dev.jsonl")
        files = [f"task.train_file={train}", f"task.validation_file={dev}", "task.group_column=document"]
        log_rows(load("task=custom", *files, "task.unlabelled=[no]", "task.labels=[yes,maybe]"))
        # Rows without a label are left out, and counted: of dev 15, 18, 21 and 24; 14, 16 and 17 are training rows.
        assert caplog.messages[-2:] == [
            f"3 of 7 rows of validation are training rows too, the first of them {dev}, line 1 (equal to {train}, row "
            "15)",
            f"3 of 7 rows of validation are of groups that have training rows too (task.group_column=document), the "
            f"first of them {dev}, line 1",
        ]

    def test_targets(self, tmp_path, caplog):
        train = write(pd.DataFrame({"text": list("abcd"), "label": [0, 1, 2, 5]}), tmp_path / "train.csv")
        dev = write(pd.DataFrame({"text": ["e"], "label": [1]}), tmp_path / "dev.csv")
        regression = ["task.type=regression", "task.metrics=[pearson]", "task.metric=pearson"]
        with caplog.at_level(logging.INFO):
            log_rows(load("task=custom", f"task.train_file={train}", f"task.validation_file={dev}", *regression))
        assert caplog.messages[1] == "targets of the training rows: 0 to 5, mean 2"

    def test_tokens_that_are_cut_or_unknown(self, tmp_path, caplog):
        train = write(pd.DataFrame({"text": ["abcdefgh", "ab"], "label": ["x", "y"]}), tmp_path / "train.csv")
        dev = write(pd.DataFrame({"text": ["ab"], "label": ["x"]}), tmp_path / "dev.csv")
        cfg = load_config(
            ["backbone=tiny_bert", "task=custom", f"task.train_file={train}", f"task.validation_file={dev}"]
        )
        task = load_task(cfg.task, None)
        tokenizer = open_backbone(cfg.backbone, cfg.layers).load_tokenizer()
        # 10 and 4 tokens with [CLS] and [SEP].
        encoded = {name: encode(rows, tokenizer, 6) for name, rows in (("train", task.train), ("report", task.report))}
        task.settings.max_length = 6
        with caplog.at_level(logging.INFO):
            log_tokens(task, encoded, tokenizer)
        # 95 % of the 14 tokens of the training rows are 13.3: nine of the longer row's ten would leave out one.
        assert caplog.messages == [
            "tokens that task.max_length=6 cuts: 28.6 % of train, 0.0 % of validation; task.max_length=10 would keep "
            "95 % of train"
        ]
        tokenizer.unk_token = "a"
        with caplog.at_level(logging.WARNING):
            log_tokens(task, encoded, tokenizer)
        assert caplog.messages[-2:] == [
            "33.3 % of the tokens of train are unknown to the tokenizer: is it made for this language and script?",
            "50.0 % of the tokens of validation are unknown to the tokenizer: is it made for this language and script?",
        ]
