"""The real encoder learns: a classification and a regression, each in a few seconds."""

from __future__ import annotations

import csv
import random

import pytest

from petl_bench.config import load_config
from petl_bench.run.run import run

QUICK = ["backbone=minilm", "task.max_length=16", "train.batch_size=8", "train.save_weights=false",
         "measure.ledger=false", "measure.inference=false", "measure.predictions=false"]  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    """Sentences about things that are liked or not, with a label and how much, each of few words."""
    things = ["the soup", "the film", "this hotel", "her song", "the train", "that book", "our guide", "the beach"]
    degrees = {-2: "terrible", -1: "rather bad", 1: "quite good", 2: "wonderful"}
    rng = random.Random(0)
    made = [(f"{rng.choice(things)} was {degrees[degree]}", degree) for degree in degrees for _ in range(40)]
    rng.shuffle(made)
    for name, part in (("train", made[:120]), ("validation", made[120:])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "degree"])
            writer.writerows((text, "good" if degree > 0 else "bad", degree) for text, degree in part)
    return [f"task.{name}_file={tmp_path / name}.csv" for name in ("train", "validation")]


def test_houlsby_learns_a_classification(rows, minilm, tmp_path):
    cfg = load_config(["task=custom", "method=houlsby", "train.epochs=2", *rows, *QUICK, f"runs_dir={tmp_path}"])
    # Untrained, it scores about 0.5.
    assert run(cfg).scores.best["accuracy"] > 0.9


def test_lora_learns_a_regression(rows, minilm, tmp_path):
    degrees = ["task.label_column=degree", "task.type=regression", "task.metrics=[pearson]", "task.metric=pearson"]
    cfg = load_config(["task=custom", "method=lora", "train.epochs=1", *rows, *degrees, *QUICK, f"runs_dir={tmp_path}"])
    # Untrained, it scores less than 0.3.
    assert run(cfg).scores.best["pearson"] > 0.7
