"""Same seed, same machine: same bits. Two processes of torchrun: the same examples, one record."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from found_records import find_records
from petl_bench.cli import main

ROOT = Path(__file__).parents[2]
TINY = ["task=smoke", "backbone=tiny_bert", "task.num_train_examples=70", "train.epochs=2", "train.batch_size=16",
        "measure.ledger=false", "measure.inference=false"]  # fmt: skip


def spawn(*command, cwd, **environment):
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, check=True, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def installed(tmp_path):
    """Runs programs in an environment without the checkout, with a wheel built from the sdist in it."""
    # `build` without a target makes the sdist first, then the wheel from it.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    where = spawn(
        sys.executable, "-c", "import petl_bench; print(petl_bench.__file__)", cwd=tmp_path, PYTHONPATH=str(site)
    )
    assert where.stdout.startswith(str(site))
    for name in ("banking77", "clinc150"):
        shipped = site / "petl_bench" / "tasks" / "data" / name
        assert {"LICENSE", "README.md", "test-00000-of-00001.parquet"} <= {file.name for file in shipped.iterdir()}
    return lambda *words, **environment: spawn(
        sys.executable, str(site / "bin" / "petl-bench"), *words, cwd=tmp_path, PYTHONPATH=str(site), **environment
    )


def test_an_installed_wheel_lists_and_gives_the_same_bits(tmp_path, installed):
    """As this process, which other tests have used, in a new one whose strings have other hashes."""
    listed = json.loads(installed("list", "tasks", "--json").stdout)
    assert {"banking77", "clinc150", "mrpc", "smoke", "wnut17"} <= {task["task"] for task in listed}
    run = ["run", "-m", "method=lora,full,peft", *TINY]
    assert main([*run, f"runs_dir={tmp_path / 'here'}"]) == 0
    installed(*run, "runs_dir=there", PYTHONHASHSEED="1")
    here, there = (
        {folder.name: outcome(folder) for folder in (tmp_path / name).glob("smoke-*")} for name in ("here", "there")
    )
    assert len(here) == 3
    assert here == there


def outcome(run):
    record = json.loads((run / "result.json").read_text())
    weights = {
        file.relative_to(run): file.read_bytes() for kind in ("adapter", "model") for file in (run / kind).glob("*")
    }
    assert weights
    losses = [(entry["train_loss"], entry["scores"]) for entry in record["history"]]
    return record["run_key"], record["scores"], losses, weights


# Quicker, two processes are started as torchrun starts them in tests/run/test_processes.py.
@pytest.mark.slow
def test_torchrun_sees_the_same_examples_and_writes_one_record(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    no_dropout = [
        "+backbone.architecture.hidden_dropout_prob=0",
        "+backbone.architecture.attention_probs_dropout_prob=0",
    ]
    assert main(["run", f"runs_dir={tmp_path / 'one'}", *TINY, *no_dropout, "method.dropout=0"]) == 0
    spawn(
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), "-m",
        "petl_bench", "run", "runs_dir=two", *TINY, *no_dropout, "method.dropout=0",
        # One batch of evaluation for two processes: one of them has nothing to do.
        "train.eval_batch_size=400", cwd=tmp_path, OMP_NUM_THREADS="1",
    )  # fmt: skip
    (one,), _ = find_records([tmp_path / "one"])
    (two,), _ = find_records([tmp_path / "two"])
    seconds = [record.time.train_seconds - record.time.warm_up_seconds for record in (one, two)]
    seen = [round(record.time.train_examples_per_second * s) for record, s in zip((one, two), seconds, strict=True)]
    # Twice 70 without the first three batches, of 16 rows or, the last of an epoch, 6.
    assert seen[0] == seen[1]
    assert seen[0] in (140 - 48, 140 - 38)
    tokens = [round(record.time.train_tokens_per_second * s) for record, s in zip((one, two), seconds, strict=True)]
    assert tokens[0] == tokens[1]
    # Each row weighs the same, however rows are dealt out: the same losses up to rounding.
    for first, second in zip(one.history, two.history, strict=True):
        assert second.train_loss == pytest.approx(first.train_loss, rel=1e-4)
    assert one.protocol == two.protocol
    assert [record.hardware["num_processes"] for record in (one, two)] == [1, 2]
