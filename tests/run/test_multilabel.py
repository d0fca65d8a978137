"""Multi-label runs: from the user's rows to scores, a threshold, predictions and `predict`."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.model import build_adapted
from petl_bench.records.predictions import PREDICTIONS_FILE, read_predictions
from petl_bench.run.compare import compare_runs
from petl_bench.run.evaluate import Evaluator, label_names
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.run.variability import choose_layers
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import load_task
from petl_bench.training.batches import BatchSource, collate
from petl_bench.training.device import make_accelerator
from run.short_runs import write


def indicators(rows):
    return np.array([[name in row for name in ("bbbb", "ccc", "xxxx")] for row in rows])


@pytest.mark.parametrize("threshold", ["0.5", "null"])
def test_multilabel_scores_follow_from_what_is_kept(multilabel_of, threshold):
    cfg = multilabel_of("method=lora", f"task.threshold={threshold}")
    record = run(cfg)
    folder = identify(cfg).folder
    table = pd.read_parquet(folder / PREDICTIONS_FILE)
    assert {"label", "predicted", "logit_0", "logit_1", "logit_2"} <= set(table.columns)
    report = table[table["split"] == "report"]
    logits = report[[f"logit_{index}" for index in range(3)]].to_numpy()
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    chosen = record.threshold
    assert chosen == 0.5 if threshold == "0.5" else chosen in {step / 20 for step in range(1, 20)}
    assert (indicators(report["predicted"]) == (probabilities >= chosen)).all()
    gold, guessed = indicators(report["label"]), probabilities >= chosen
    assert record.selected_scores == pytest.approx(
        {
            "micro_f1": f1_score(gold, guessed, average="micro"),
            "macro_f1": f1_score(gold, guessed, average="macro"),
            "subset_accuracy": (gold == guessed).all(axis=1).mean(),
        }
    )
    selection = table[table["split"] == "selection"]
    of_selection = 1 / (1 + np.exp(-selection[[f"logit_{index}" for index in range(3)]].to_numpy(dtype=np.float64)))
    if threshold == "null":
        scores = [
            f1_score(indicators(selection["label"]), of_selection >= one / 20, average="micro", zero_division=0)
            for one in range(1, 20)
        ]
        assert scores[round(chosen * 20) - 1] == max(scores)


def test_multilabel_loss_is_the_mean_over_rows_and_labels(multilabel_of):
    cfg = multilabel_of("method=lora", "train.max_steps=1")
    task = load_task(cfg.task, None)
    backbone = open_backbone(cfg.backbone, cfg.layers, task_type="multilabel")
    model, _ = build_adapted(cfg, backbone, task.labels, 1)
    rows = encode(task.train, backbone.load_tokenizer(), 32, cached=False)
    batch = collate(rows, np.arange(8))
    assert batch.labels.dtype == torch.float32
    outputs = BatchSource(rows, torch.device("cpu")).forward(model.eval(), batch, batch.labels)
    expected = torch.nn.functional.binary_cross_entropy(torch.sigmoid(outputs.logits), batch.labels)
    torch.testing.assert_close(outputs.loss, expected)
    assert task.labels == ["bbbb", "ccc", "xxxx"]


def test_predict_gives_labels(multilabel_of, predict):
    cfg = multilabel_of("method=lora", "task.threshold=null")
    record = run(cfg)
    folder = identify(cfg).folder
    (line,) = predict(folder, "--json", "--text", "the bbbb one")
    found = json.loads(line)
    expected = [name for name, share in found["probabilities"].items() if share >= record.threshold]
    assert found["labels"] == expected
    assert set(found) == {"labels", "probabilities"}
    header, row = predict(folder, "--text", "the bbbb one")
    assert header == "labels\tp(bbbb)\tp(ccc)\tp(xxxx)"
    assert row.split("\t")[0] == ",".join(expected)


def test_multilabel_runs_are_compared(multilabel_of):
    folders = []
    for seed in (0, 1):
        cfg = multilabel_of("method=lora", f"train.seed={seed}")
        run(cfg)
        folders.append(identify(cfg).folder)
    found = compare_runs(*folders)
    a, b = map(read_predictions, folders)
    assert {figure.name for figure in found.metrics} == {"micro_f1", "macro_f1", "subset_accuracy"}
    assert found.agreement_percent == pytest.approx(
        100 * np.mean([x == y for x, y in zip(a.predicted, b.predicted, strict=True)])
    )
    assert found.calibration == []


@pytest.mark.parametrize(
    ("cell", "overrides", "said"),
    [
        (["a", "a"], (), "line 1: the label 'a' is given twice"),
        ("a,,b", (), "line 1 has no label in 'labels'"),
        (["z"], ("task.labels=[a,b]",), "line 1: the label 'z' is none of task.labels=['a', 'b']"),
        ([["a"]], (), "holds a list, not one text or number"),
        ("a,b", ("task.threshold=null",), "task.threshold=null chooses the threshold on the selection split"),
        ("a,b", ("task.threshold=1",), "task.threshold=1.0 must lie between 0 and 1"),
        ("a,b", ("task.metrics=[accuracy]", "task.metric=accuracy"), "micro_f1, subset_accuracy do"),
        ("a,b", ("layers=variability",), "layers=variability needs one class a row"),
    ],
)
def test_what_is_wrong_with_multilabel_rows_is_said(tmp_path, cell, overrides, said):
    rows = [{"text": "one", "labels": cell}, {"text": "two", "labels": ["a", "b"]}]
    file = write(tmp_path / "rows.jsonl", rows)
    files = [f"task.train_file={file}", f"task.validation_file={file}"]
    with pytest.raises(RequestError) as error:
        cfg = load_config(["task=multilabel", "backbone=tiny_bert", *files, *overrides])
        task = load_task(cfg.task, None)
        choose_layers(cfg.layers, cfg.backbone, task, 8, "cpu")
        raise AssertionError("nothing was refused")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'text,labels\none,"b; a"\ntwo,\nthree,a\n'),
        ("rows.tsv", "text\tlabels\none\tb;a\ntwo\t\nthree\ta\n"),
        ("rows.jsonl", '{"text": "one", "labels": ["b", "a"]}\n{"text": "two", "labels": []}\n'
                       '{"text": "three", "labels": "a"}\n'),
    ],
)  # fmt: skip
def test_labels_as_lists_and_strings(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    files = [f"task.train_file={tmp_path / name}", f"task.validation_file={tmp_path / name}"]
    task = load_task(load_config(["task=multilabel", *files, "task.label_separator=';'"]).task, None)
    assert task.labels == ["a", "b"]
    assert task.train.labels.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert task.given_names(task.train).tolist() == [("a", "b"), (), ("a",)]


def test_thresholds_that_score_alike_are_decided_for_the_middle(multilabel_of):
    task = load_task(multilabel_of("task.threshold=null").task, None)
    accelerator = make_accelerator(multilabel_of().train)
    evaluator = Evaluator(torch.nn.Linear(1, 1), task, {}, 8, accelerator)
    outputs = np.where(task.selection.labels > 0, 9.0, -9.0).astype(np.float32)
    assert evaluator._best_threshold(outputs) == 0.5
    assert label_names(outputs, task.labels, 0.5).tolist() == task.given_names(task.selection).tolist()
