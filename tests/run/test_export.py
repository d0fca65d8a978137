"""`petl-bench export`: models that load without this package, and give the run's logits."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from finished_runs import LABELS, code_of, finished, root, table
from petl_bench import cli
from petl_bench.records.predictions import read_predictions
from petl_bench.run.predict import Predictor
from petl_bench.tasks.load import rows_of_texts

TEXTS = [" ".join(words) for words in (["ccc"], ["bbbb", "bbbb", "bbbb"], ["xxxxx", "xxxxx"])]


@pytest.fixture
def export(capsys):
    """Runs `petl-bench export RUN`; returns exit code, standard output and messages."""

    def call(run, to, out, *arguments):
        capsys.readouterr()
        code = cli.main(["export", str(run), "--to", to, "--out", str(out), *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def predictions(run):
    predictor = Predictor(run)
    return predictor.predict(rows_of_texts((TEXTS,), predictor.task))


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=lora",),
        ("method=lora", "layers=window", "layers.bottom=1", "layers.top=1"),
        ("method=full",),
        ("method=fl_tuning",),
        ("method=head",),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_a_merged_model_is_one_of_transformers(export, tmp_path, overrides):
    run = finished("classification", *overrides)
    code, told, _ = export(run, "merged", tmp_path / "model", "--json")
    assert code == 0
    told = json.loads(told)
    assert (told["folder"], told["num_rows"]) == (str(tmp_path / "model"), 24)
    assert told["largest_difference"] < 1e-5
    folder = tmp_path / "model"
    assert not list(folder.glob("adapter*"))
    classify = pipeline("text-classification", model=str(folder), top_k=None)
    for found, expected in zip(classify(TEXTS), predictions(run), strict=True):
        shares = {one["label"]: one["score"] for one in found}
        assert shares == pytest.approx(expected.probabilities, abs=1e-5)
    # What was scored is what the exported model gives.
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(table("classification", 24, 1)["question"].tolist(), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.numpy()
    np.testing.assert_allclose(logits, read_predictions(run).outputs, atol=1e-5)


@pytest.mark.parametrize("kind", ["regression", "multilabel", "tagging"])
def test_every_type_of_task_is_merged(export, tmp_path, kind, monkeypatch, capsys):
    code, told, _ = export(finished(kind), "merged", tmp_path / "model")
    assert code == 0
    assert told.startswith("the logits of 24 rows differ by at most ")
    card = (tmp_path / "model" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "model")
    exec(compile(code_of(card).replace('"a text"', '"a ccc"'), "card", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_weights_in_bf16_are_merged_in_fp32(export, tmp_path):
    run = finished("classification", "method=lora", "backbone.dtype=bf16", "train.precision=bf16", "train.epochs=1")
    assert export(run, "merged", tmp_path / "model")[0] == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_cannot_be_merged_is_refused_with_the_way_out(export, tmp_path):
    code, told, messages = export(finished("classification", "method=houlsby"), "merged", tmp_path / "model")
    assert (code, told) == (2, "")
    assert messages.splitlines()[-1] == (
        "petl-bench: method=houlsby adds modules that cannot be merged into the backbone's weights: export the run "
        "with --to onnx, or load its adapter as docs/adapters.md says."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(export, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, messages = export(finished(), "merged", tmp_path)
    assert code == 2
    assert "is there already and not empty: name a new folder" in messages
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_rows_to_compare_on_may_be_others(export, tmp_path):
    shutil.copytree(finished(), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    del record["content_sha256"]
    record["config"]["task"]["train_file"] = str(tmp_path / "moved.jsonl")
    (tmp_path / "run" / "result.json").write_text(json.dumps(record))
    code, _, messages = export(tmp_path / "run", "merged", tmp_path / "model")
    assert code == 2
    assert "moved.jsonl: there is no such file" in messages
    assert "give their folder with --data-root, or other rows with --file." in messages
    table("classification", 100, 3).drop(columns="label").to_csv(tmp_path / "rows.csv", index=False)
    code, told, _ = export(tmp_path / "run", "merged", tmp_path / "model", "--file", tmp_path / "rows.csv", "--json")
    assert (code, json.loads(told)["num_rows"]) == (0, 64)


def test_a_model_with_other_logits_is_not_kept(export, tmp_path, monkeypatch):
    def broken(run, model, folder):
        model.get_base_model().classifier.bias.data += 1e-3
        return model

    monkeypatch.setattr("petl_bench.run.export._to_plain", broken)
    code, _, messages = export(finished(), "merged", tmp_path / "model")
    assert code == 1
    assert "The logits of the exported model differ by up to 0.001" in messages
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_onnx_is_refused(export, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, messages = export(finished(), "onnx", tmp_path / "model")
    assert code == 2
    assert "--to onnx needs the extra `onnx`: pip install 'petl-bench[onnx]'." in messages


def test_what_the_exporter_cannot_do_is_told(export, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")

    def refuse(*_, **__):
        raise NotImplementedError("no operator for this\nand much more")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    code, told, messages = export(finished(), "onnx", tmp_path / "model")
    assert (code, told) == (2, "")
    assert "method=lora on base cannot be exported to ONNX: no operator for this\n" in messages
    assert list(tmp_path.iterdir()) == []


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("classification", "houlsby"),
        *(pytest.param(kind, "lora", marks=slow) for kind in ("regression", "multilabel", "tagging")),
        *(pytest.param("classification", method, marks=slow) for method in ("full", "prefix", "flat", "lst", "bitfit")),
    ],
)
def test_onnxruntime_gives_the_runs_logits(export, tmp_path, kind, method, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    run = finished(kind, f"method={method}")
    code, told, messages = export(run, "onnx", tmp_path / "model", "--json")
    assert code == 0, messages
    assert json.loads(told)["largest_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = TEXTS if kind != "tagging" else [f"a {text}" for text in TEXTS]
    for given in (texts, texts[:1]):
        inputs = tokenizer(given, padding=True, return_tensors="np")
        (logits,) = session.run(None, {one.name: inputs[one.name] for one in session.get_inputs()})
        assert logits.shape[0] == len(given)
        if kind == "classification":
            shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            expected = [list(one.probabilities.values()) for one in predictions(run)[: len(given)]]
            np.testing.assert_allclose(shares, expected, atol=1e-5)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    if kind == "classification":
        assert list(config["id2label"].values()) == LABELS
    card = (tmp_path / "model" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "model")
    capsys.readouterr()
    exec(compile(code_of(card), "card", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_a_run_that_is_none_is_told(export, tmp_path):
    code, _, messages = export(root(), "merged", tmp_path / "model")
    assert code == 2
    assert "holds no finished run" in messages
