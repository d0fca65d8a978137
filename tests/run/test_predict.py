"""Predictions of a finished run: the backbone that belongs to it, and lines on standard input."""

from __future__ import annotations

import io
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from petl_bench import cli
from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.records.predictions import read_predictions
from petl_bench.run.lifecycle import identify
from petl_bench.run.predict import Entity, Prediction, Predictor, as_lines
from petl_bench.run.run import run
from petl_bench.tasks.load import load_task
from petl_bench.tasks.rows import Rows

TEXT = "the food was good"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A local backbone, another one of the same shape, and the folders of a LoRA and a full run on the first."""
    folder = tmp_path_factory.mktemp("predict")
    for name in ("base", "other"):
        cfg = load_config(["backbone=tiny_bert", "backbone.architecture.num_hidden_layers=2"])
        backbone = open_backbone(cfg.backbone, cfg.layers)
        backbone.build_model(2).save_pretrained(folder / name)
        backbone.load_tokenizer().save_pretrained(folder / name)
    for method in ("lora", "full"):
        cfg = load_config(
            [
                *(
                    "task=smoke",
                    "backbone=tiny_bert",
                    "backbone.weights=pretrained",
                    f"backbone.path={folder / 'base'}",
                ),
                *("task.num_train_examples=16", "train.epochs=1", "train.batch_size=16", f"method={method}"),
                *("measure.ledger=false", "measure.inference=false", f"runs_dir={folder / 'runs'}"),
            ]
        )
        record = run(cfg)
        assert set(record.base_files) == {
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip
        identify(cfg).folder.rename(folder / method)
    return folder


@pytest.fixture
def predict(capsys, monkeypatch):
    """Runs `petl-bench predict`; returns exit code, probabilities and messages."""

    def call(*arguments, stdin=None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), newline="\n"))
        capsys.readouterr()
        code = cli.main(["predict", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return code, [json.loads(line)["probabilities"] for line in out.splitlines()], err

    return call


@pytest.mark.parametrize("method", ["lora", "houlsby", "bitfit"])
def test_frozen_weights_in_bf16_predict_what_was_scored(tmp_path, method):
    cfg = load_config(
        [
            *(
                "task=smoke",
                "backbone=tiny_bert",
                "backbone.dtype=bf16",
                "train.precision=bf16",
                "backbone.weights=random",
            ),
            *("task.num_train_examples=16", "task.num_held_out_examples=16", "train.epochs=1", f"method={method}"),
            *("measure.ledger=false", "measure.inference=false", f"runs_dir={tmp_path}"),
        ]
    )
    run(cfg)
    folder = identify(cfg).folder
    scored = torch.from_numpy(read_predictions(folder).outputs).softmax(dim=-1).numpy()
    rows = load_task(cfg.task, None).report
    predictions = Predictor(folder).predict(Rows(rows.texts, None))
    found = np.array([list(one.probabilities.values()) for one in predictions])
    np.testing.assert_allclose(found, scored, atol=1e-6)


@pytest.fixture
def moved(trained):
    """Takes the backbone away; `put` brings one to its place."""
    backbone, kept = trained / "base", trained / "kept"
    backbone.rename(kept)

    def put(name):
        shutil.copytree(trained / name, backbone)

    yield put
    shutil.rmtree(backbone, ignore_errors=True)
    kept.rename(backbone)


def test_another_backbone_is_refused_unless_it_is_asked_for(trained, predict, moved):
    moved("kept")
    code, right, _ = predict(trained / "lora", "--text", TEXT)
    assert code == 0
    shutil.rmtree(trained / "base")
    moved("other")
    code, none, err = predict(trained / "lora", "--text", TEXT)
    assert (code, none) == (2, [])
    assert "differs from the one that" in err
    assert "(model.safetensors)" in err
    code, other, err = predict(trained / "lora", "--text", TEXT, "--any-base")
    assert code == 0
    assert other != right
    assert "is used all the same" in err


def test_a_backbone_that_has_moved_is_given(trained, predict, moved):
    code, none, err = predict(trained / "lora", "--text", TEXT)
    assert (code, none) == (2, [])
    assert "has moved, give its folder with --base" in err
    code, found, _ = predict(trained / "lora", "--text", TEXT, "--base", trained / "kept")
    assert code == 0
    moved("kept")
    assert predict(trained / "lora", "--text", TEXT)[1] == found


def test_a_whole_model_needs_no_backbone(trained, predict, moved):
    code, without, _ = predict(trained / "full", "--text", TEXT)
    assert code == 0
    moved("kept")
    assert predict(trained / "full", "--text", TEXT)[1] == without


def test_a_record_that_does_not_know_its_backbone_still_predicts(trained, predict, tmp_path):
    shutil.copytree(trained / "lora", tmp_path / "old")
    file = tmp_path / "old" / "result.json"
    content = json.loads(file.read_text())
    del content["base_files"], content["content_sha256"]
    file.write_text(json.dumps(content))
    assert predict(tmp_path / "old", "--text", TEXT)[:2] == predict(trained / "lora", "--text", TEXT)[:2]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("lora", "adapter/adapter_config.json"),
        ("lora", "adapter/adapter_model.safetensors"),
        ("full", "model/model.safetensors"),
        ("full", "model/config.json"),
        ("full", "model/tokenizer.json"),
    ],
)
def test_weights_and_settings_that_are_not_the_runs_are_refused(trained, predict, tmp_path, method, name):
    shutil.copytree(trained / method, tmp_path / "run")
    assert predict(tmp_path / "run", "--text", TEXT)[:2] == predict(trained / method, "--text", TEXT)[:2]
    file = tmp_path / "run" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, found, err = predict(tmp_path / "run", "--text", TEXT)
    assert (code, found) == (2, [])
    assert f"{file}: not what the run wrote" in err


def test_lines_mean_the_same_whatever_ends_them(trained, predict):
    code, plain, _ = predict(trained / "lora", stdin="première\nsecond".encode())
    assert (code, len(plain)) == (0, 2)
    for other in (
        "première\nsecond\n".encode(),
        "première\r\nsecond\r\n".encode(),
        "première\nsecond".encode("utf-8-sig"),
    ):
        assert predict(trained / "lora", stdin=other)[:2] == (0, plain)
    assert predict(trained / "lora", stdin=b"")[:2] == (0, [])


def test_each_row_takes_one_line_whatever_its_labels_hold():
    labels = ["a\tb", "c\r\nd\x1b"]
    predictor = SimpleNamespace(
        task=load_config(["task=custom", "task.train_file=a.csv"]).task, labels=labels, ood=None
    )
    answers = [Prediction(label, dict.fromkeys(labels, 0.5)) for label in labels]
    lines = list(as_lines(predictor, answers, as_json=False))
    assert [line.split("\t") for line in lines] == [
        ["label", "p(a b)", "p(c  d )"], ["a b", "0.5000", "0.5000"], ["c  d ", "0.5000", "0.5000"],
    ]  # fmt: skip
    entities = [Entity("a\u2028b", 0, 3, "c\td")]
    assert list(as_lines(predictor, [Prediction(entities=entities)], as_json=False, first=2)) == ["2\ta b\t0\t3\tc d"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"caf\xe9", "line 66 of standard input: the text holds bytes that are no UTF-8"),
        (b"a\0b", "line 66 of standard input: the text holds a zero byte"),
        (b"a\rb", "line 66 of standard input holds a carriage return inside"),
    ],
)
def test_a_line_that_is_no_text_is_named(trained, predict, line, words):
    code, found, err = predict(trained / "lora", stdin=b"good\n" * 65 + line + b"\n")
    # The lines before are answered in groups of 64.
    assert (code, len(found)) == (2, 64)
    assert words in err


def test_standard_input_that_cannot_be_read(trained, predict, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = predict(trained / "lora")
    assert code == 2
    assert "Standard input is closed" in err
