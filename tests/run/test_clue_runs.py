"""Runs of the command line on rows in CLUE's and FewCLUE's layouts: one text, a pair, tags of characters."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest

from chinese import save_backbone, write_lines
from petl_bench import cli
from petl_bench.records.predictions import PREDICTIONS_FILE, read_predictions
from petl_bench.records.store import RunFolder
from petl_bench.run.run import run as run_config
from petl_bench.studies.definition import open_study
from petl_bench.studies.expand import cells, compose

NAMES, VERBS = ("李四", "王五", "NBA2K18"), ("说他来", "看它走", "问我在")
FAST = ["train.epochs=2", "train.batch_size=8", "measure.ledger=false", "measure.inference=false"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = save_backbone(tmp_path_factory.mktemp("base") / "tiny_chinese", [*NAMES, *VERBS])
    return ["backbone=roberta_wwm_ext_base", f"backbone.path={folder}", "train.learning_rate=1e-2"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in this process that must succeed; gives what it prints to both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*words):
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
        return capsys.readouterr()

    return call


def run(command, tmp_path, *overrides):
    """A finished run: its record, its folder, and what the screen said."""
    said = command("run", f"data_root={tmp_path / 'rows'}", *FAST, *overrides).err
    (folder,) = (tmp_path / "runs").glob("*/")
    record = RunFolder(folder).finished()
    return record, folder, said


def test_one_text_with_marked_spans_on_a_fixed_split(command, backbone, tmp_path):
    def row(number):
        name, verb = NAMES[number % 2], VERBS[number % 3]
        index = len(name) + 1
        # The index of every fifth span is off by one.
        target = {"span1_text": name, "span1_index": 0 + (number % 5 == 0), "span2_text": verb[1], "span2_index": index}
        return {
            "text": f"{name}{verb}了。",
            "target": target,
            "label": "true" if number % 2 else "false",
            "idx": number,
        }

    for name, numbers in (("train_2", range(16)), ("dev_2", range(6)), ("test_public", range(6, 15))):
        write_lines(tmp_path / "rows" / "cluewsc" / f"{name}.json", [row(number) for number in numbers])
    record, folder, said = run(
        command, tmp_path, "task=fewclue_cluewsc", "task.fewclue_split=2", "method=lora", *backbone
    )
    assert record.data.rows_per_split == {"train": 16, "dev_2": 6, "test_public": 9}
    assert (record.protocol.selection_split, record.protocol.report_split) == ("dev_2", "test_public")
    assert (record.config["task"]["fewclue_split"], record.config["task"]["name"]) == ("2", "fewclue_cluewsc_2")
    assert "train_2.json: 4 spans are not at the index that is given" in said
    kept = read_predictions(folder)
    assert kept.labels.tolist() == [0 if number % 2 else 1 for number in range(6, 15)]
    right = kept.outputs.argmax(axis=1) == kept.labels
    assert record.selected_scores["accuracy"] == pytest.approx(float(right.mean()))
    # Rows without labels are marked in the same way.
    hidden = {key: value for key, value in row(7).items() if key != "label"}
    file = write_lines(tmp_path / "test.json", [hidden])
    by_file = command("predict", folder, "--file", file, "--json").out
    by_text = command("predict", folder, "--text", "_王五_看[它]走了。", "--json").out
    assert json.loads(by_file) == json.loads(by_text)


def test_a_pair_whose_rows_without_a_label_are_counted(command, backbone, tmp_path):
    def row(number, labels=("neutral", "entailment", "contradiction", "-")):
        texts = {"sentence1": f"{NAMES[number % 3]}{VERBS[number % 2]}{number}", "sentence2": f"{VERBS[number % 3]}了"}
        return texts | {"label": labels[number % len(labels)], "id": number}

    for name, count in (("train", 16), ("dev", 9)):
        write_lines(tmp_path / "rows" / "ocnli" / f"{name}.json", [row(number) for number in range(count)])
    record, folder, said = run(command, tmp_path, "task=ocnli", "method=houlsby", *backbone)
    assert record.data.rows_per_split == {"train": 12, "validation": 7}
    assert record.data.left_out_per_split == {"train": 4, "validation": 2}
    assert "train: 4 rows are left out, as their labels say that they have none" in said
    assert len(pd.read_parquet(folder / PREDICTIONS_FILE)) == 7
    assert json.loads((folder / "result.json").read_text())["data"]["left_out_per_split"]["validation"] == 2
    lines = command("predict", folder, "--text", "李四说他来", "看它走了").out.splitlines()
    assert lines[0].split("\t") == ["label", "p(neutral)", "p(entailment)", "p(contradiction)"]


def test_tags_of_characters_with_entities_that_are_cut(command, backbone, tmp_path):
    def row(number):
        name, verb = NAMES[number % 3], VERBS[number % 2]
        text = f"{verb}{name}{verb}{name}"
        first, second = len(verb), 2 * len(verb) + len(name)
        places = [[begin, begin + len(name) - 1] for begin in (first, second)]
        return {"text": text, "label": {"game" if number % 3 == 2 else "name": {name: places}}}

    for name, count in (("train", 24), ("dev", 6)):
        write_lines(tmp_path / "rows" / "cluener" / f"{name}.json", [row(number) for number in range(count)])
    record, folder, said = run(
        command, tmp_path, "task=cluener", "method=lora", *backbone, "task.max_length=16", "train.epochs=6"
    )
    # Of 14 characters that are seen, 李四 and 王五 fit twice; of NBA2K18, the second begins at 13 and ends at 19.
    assert record.tagging.entities_cut == {"train": 8, "validation": 2}
    assert record.tagging.words_cut == {"train": 8 * 6, "validation": 2 * 6}
    assert "validation: 12 words and 2 entities are cut by task.max_length=16" in said
    # Types that are predicted but have no entity are there, too.
    support = {kind: scores.support for kind, scores in record.tagging.types.items() if scores.support}
    assert support == {"game": 4, "name": 8}
    kept = pd.read_parquet(folder / PREDICTIONS_FILE)
    assert list(kept["label"].iloc[2][3:10]) == ["B-game", *["I-game"] * 6]
    assert set(kept["predicted"].iloc[2][14:]) == {"O"}
    file = write_lines(tmp_path / "test.json", [{"id": 0, "text": "说他来 李四"}])
    (found,) = (json.loads(line) for line in command("predict", folder, "--file", file, "--json").out.splitlines())
    assert found["text"] == "说他来 李四"
    assert all(found["text"][one["start"] : one["end"]] == one["text"] for one in found["entities"])


STUDIED = {
    "csl": [{"abst": f"摘要{n}", "keyword": ["水声学", NAMES[n % 3]], "label": str(n % 2)} for n in range(8)],
    "tnews": [{"sentence": f"{NAMES[n % 3]}{n}", "label": str(100 + n), "label_desc": ""} for n in range(17)],
    "cluener": [{"text": f"李四{VERBS[n % 3]}", "label": {"name": {"李四": [[0, 1]]}}} for n in range(8)],
}
STUDIED["tnews"] = [row for row in STUDIED["tnews"] if row["label"] not in ("105", "111")]


@pytest.mark.parametrize(
    ("task", "method"), [("csl", "prefix_160"), ("tnews_few", "full_bert"), ("cluener_few", "fl_tuning")]
)
def test_cells_of_the_study_make_two_updates(task, method, backbone, tmp_path):
    for folder, rows in STUDIED.items():
        for name in ("train", "dev"):
            write_lines(tmp_path / "rows" / folder / f"{name}.json", rows)
    _, study = open_study("fl_tuning_clue")
    cell = next(one for one in cells(study, []) if (one.task, one.method) == (task, method))
    few = ["task.rows_per_class=1"] if task == "tnews_few" else ["task.num_train_examples=8"]
    small = [*few, *backbone[1:2], "task.max_length=24", "train.max_steps=2", "train.batch_size=4", *FAST[2:],
             f"data_root={tmp_path / 'rows'}"]  # fmt: skip
    cfg = compose(dataclasses.replace(cell, overrides=[*cell.overrides, *small]), tmp_path / "study")
    record = run_config(cfg)
    assert (record.status, record.history[-1].step) == ("finished", 2)
    assert record.protocol.metric == ("entity_f1" if task == "cluener_few" else "accuracy")
