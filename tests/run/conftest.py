"""Short multi-label runs, and `petl-bench predict` called in this process."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from petl_bench import cli
from petl_bench.config import load_config
from run.short_runs import FAST, write


@pytest.fixture
def predict(capsys, monkeypatch):
    def call(*arguments, stdin=None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), newline="\n"))
        capsys.readouterr()
        assert cli.main(["predict", *map(str, arguments)]) == 0
        return capsys.readouterr().out.splitlines()

    return call


def topics(count, seed):
    """Texts that have a label for each of some words that they hold."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = [word for word in ("xxxx", "bbbb", "ccc") if rng.random() < 0.5]
        rows.append({"text": " ".join(["the", *words, "one"]), "labels": words})
    return rows


@pytest.fixture(scope="module")
def multilabel_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multilabel")
    for number, (name, count) in enumerate({"train": 120, "dev": 60, "test": 80}.items()):
        write(folder / f"{name}.jsonl", topics(count, number))

    def compose(*overrides):
        base = [
            *("task=multilabel", "backbone=tiny_bert", f"task.train_file={folder / 'train.jsonl'}", *FAST),
            *(f"task.validation_file={folder / 'dev.jsonl'}", f"task.test_file={folder / 'test.jsonl'}"),
            "task.protocol=test",
            *("train.epochs=3", "train.learning_rate=1e-2", "task.max_length=32", f"runs_dir={folder / 'runs'}"),
        ]
        return load_config([*base, *overrides])

    return compose
