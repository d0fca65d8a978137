"""Many runs in one process: nothing is done twice, and memory does not grow with their number."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from few_rows import few_demo_rows
from forked import FORK_SERVER
from petl_bench.backbones.load import Backbone
from petl_bench.config import load_config
from petl_bench.estimate import costs
from petl_bench.run.run import run
from petl_bench.tasks import load


def _resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def _twenty_runs(runs_dir, sizes):
    load.demo_rows = few_demo_rows
    for number in range(20):
        method = ("lora", "flat", "head", "full")[number % 4]
        run(load_config([
            "task=smoke", "backbone=tiny_bert", "backbone.architecture.num_hidden_layers=2", f"method={method}",
            "task.num_train_examples=32", "task.max_length=16", "train.epochs=2", f"train.seed={number}",
            f"runs_dir={runs_dir}", "train.cache_memory=32MiB", "measure.inference=false",
        ]))  # fmt: skip
        sizes.put(_resident())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_runs(tmp_path):
    sizes = FORK_SERVER.Queue()
    process = FORK_SERVER.Process(target=_twenty_runs, args=(tmp_path, sizes))
    process.start()
    resident = [sizes.get(timeout=120) for _ in range(20)]
    process.join()
    # Rounds of the four methods, the first of which fill the caches.
    rounds = [max(resident[start : start + 4]) for start in range(0, 20, 4)]
    assert max(rounds[3:]) - rounds[2] < 16 * 2**20, [size // 2**20 for size in rounds]


def test_finished_runs_are_recognised_without_building_a_model(tiny, monkeypatch):
    configs = [tiny("train.max_steps=1", f"train.seed={seed}") for seed in range(2)]
    records = [run(cfg) for cfg in configs]
    written = {file: file.stat().st_mtime_ns for file in Path(configs[0].runs_dir).rglob("*")}

    def forbidden(*_args, **_kwargs):
        raise AssertionError("a finished run needs no model")

    monkeypatch.setattr(Backbone, "build_model", forbidden)
    assert [run(cfg) for cfg in configs * 2] == records * 2
    assert {file: file.stat().st_mtime_ns for file in Path(configs[0].runs_dir).rglob("*")} == written


def test_runs_that_differ_in_seed_or_rate_share_the_estimate(tiny, monkeypatch):
    monkeypatch.setattr(costs, "_estimated", {})
    options = ["measure.ledger=true", "train.max_steps=1"]
    first = run(tiny(*options))
    again = run(tiny(*options, "train.seed=1", "train.learning_rate=1e-3"))
    assert again.memory.estimate == first.memory.estimate
    assert len(costs._estimated) == 1
    other = run(tiny(*options, "train.batch_size=8"))
    assert other.memory.estimate.peak_bytes < first.memory.estimate.peak_bytes
    assert len(costs._estimated) == 2
