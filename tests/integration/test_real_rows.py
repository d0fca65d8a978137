"""The real encoder on real GLUE rows."""

from __future__ import annotations

import csv

import pytest
from pyarrow import parquet

from petl_bench import cli
from petl_bench.config import load_config
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run

UNMEASURED = ["measure.ledger=false", "measure.inference=false"]


@pytest.fixture
def real(glue, minilm, tmp_path):
    def compose(*overrides):
        return load_config([f"data_root={glue}", f"runs_dir={tmp_path}", *overrides])

    return compose


@pytest.mark.slow
def test_lora_learns_sst2_on_minilm(real):
    quick = ["train.save_weights=false", "measure.ledger=false", "measure.inference=false"]
    record = run(real("task=sst2", "method=lora", "task.num_train_examples=1000", "train.epochs=2", *quick))
    losses = [entry.train_loss for entry in record.history]
    assert losses[-1] < losses[0] < 0.72
    # The majority class scores 0.509.
    assert record.scores.best["accuracy"] > 0.65
    assert record.data.rows_per_split == {"train": 1000, "validation": 872}


@pytest.mark.slow
def test_regression_learns_stsb_on_minilm(real):
    cfg = real("task=stsb", "method=flat", "task.num_train_examples=1000", "train.evaluate_every=96")
    record = run(cfg)
    assert record.scores.best["pearson"] > 0.5
    assert set(record.scores.best) == {"pearson", "spearman"}


@pytest.fixture
def few(glue, tmp_path):
    """The first 80 rows of each file: there are thousands to score."""

    def of_task(task):
        folder = tmp_path / "few" / task
        folder.mkdir(parents=True)
        for file in (glue / task).glob("*.parquet"):
            parquet.write_table(parquet.read_table(file).slice(0, 80), folder / file.name)
        return f"data_root={folder.parent}"

    return of_task


def test_mnli_reports_matched_and_mismatched_and_submits(real, few, tmp_path, capsys):
    cfg = real(
        *("task=mnli", "backbone=tiny_bert", "method=head", "task.num_train_examples=64", "train.epochs=1"),
        *(few("mnli"), *UNMEASURED),
    )
    record = run(cfg)
    assert set(record.scores.best) == {"accuracy", "mismatched_accuracy"}
    assert cli.main(["predict", str(identify(cfg).folder), "--submit", str(tmp_path / "out")]) == 2
    assert "mnli/test_matched" in capsys.readouterr().err


def test_submissions_have_the_servers_format(real, few, tmp_path):
    for task, names in (("wnli", {"0", "1"}), ("stsb", None)):
        small = ["backbone=tiny_bert", "task.num_train_examples=64", "task.max_length=16", "train.epochs=1"]
        cfg = real(f"task={task}", "method=head", *small, *UNMEASURED, few(task))
        run(cfg)
        assert cli.main(["predict", str(identify(cfg).folder), "--submit", str(tmp_path / task)]) == 0
        (file,) = (tmp_path / task).iterdir()
        lines = list(csv.reader(file.open(), delimiter="\t"))
        assert lines[0] == ["index", "prediction"]
        assert [int(line[0]) for line in lines[1:]] == list(range(80))
        if names:
            assert {line[1] for line in lines[1:]} <= names
        else:
            assert all(0.0 <= float(line[1]) <= 5.0 for line in lines[1:])


ADAPTERS = ["houlsby", "prefix", "fl_tuning", "coda", "flat", "lst", "bitfit", "layer_selection"]
# Its layers are computed once; the others take minutes.
QUICK = ("flat",)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ADAPTERS]
)
def test_the_loss_falls_under_every_method(method, minilm, tmp_path):
    """With its own default settings, on the real encoder."""
    # Where routed tokens see each other alone, CoDA without pretraining learns little from so few short rows.
    further = ["method.attention=k2all", "train.epochs=3"] if method == "coda" else ["train.epochs=2"]
    if method == "layer_selection":
        further = ["layers.strategy=window", "train.epochs=2"]
    rows = 400 if method in (*QUICK, "coda") else 600
    unsaved = [*UNMEASURED, "train.save_weights=false"]
    overrides = [
        "task=smoke",
        f"method={method}",
        f"task.num_train_examples={rows}",
        f"runs_dir={tmp_path}",
        *further,
        *unsaved,
    ]
    cfg = load_config(overrides)
    record = run(cfg)
    losses = [entry.train_loss for entry in record.history]
    assert losses[-1] < losses[0] < 0.75
    assert record.scores.best["accuracy"] > 0.55


@pytest.mark.slow
@pytest.mark.parametrize("method", [*ADAPTERS, "head", "lora", "full"])
def test_every_method_beats_the_majority_class_of_sst2(method, real):
    record = run(real("task=sst2", f"method={method}", "task.num_train_examples=4000", "train.save_weights=false"))
    # The majority class scores 0.509; a bare head reads an untrained pooler (63.8 with seed 0).
    assert record.scores.best["accuracy"] > (0.6 if method == "head" else 0.65)
