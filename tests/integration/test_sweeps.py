"""Many runs in one process: nothing is done twice, and memory does not grow with their number."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from petl_bench.estimate import costs
from petl_bench.run.run import run

RUNS = """
import sys
from pathlib import Path
from petl_bench.config import load_config
from petl_bench.run.run import run

def resident():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

for number in range(24):
    method = ("lora", "flat", "head", "full")[number % 4]
    run(load_config([
        "backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=2",
        f"method={method}", f"train.seed={number}", f"runs_dir={sys.argv[1]}", "train.cache_memory=32MiB",
        "measure.inference=false",
    ]))
    print(resident(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    resident = [int(line) for line in done.stdout.split()]
    # Rounds of the four methods, the first of which fill the caches.
    rounds = [max(resident[start : start + 4]) for start in range(0, 24, 4)]
    assert max(rounds[3:]) - rounds[2] < 24 * 2**20, [size // 2**20 for size in rounds]


def test_a_hundred_finished_runs_are_recognised_at_once(tiny):
    configs = [tiny("train.max_steps=1", f"train.seed={seed}") for seed in range(2)]
    for cfg in configs:
        run(cfg)
    started = time.perf_counter()
    for cfg in configs * 50:
        assert run(cfg).status == "finished"
    assert time.perf_counter() - started < 2


def test_runs_that_differ_in_seed_or_rate_share_the_ledger(tiny, monkeypatch):
    monkeypatch.setattr(costs, "_counted", {})
    options = ["measure.ledger=true", "train.max_steps=1"]
    first = run(tiny(*options))
    again = run(tiny(*options, "train.seed=1", "train.learning_rate=1e-3"))
    assert again.memory.estimate == first.memory.estimate
    assert len(costs._counted) == 1
    other = run(tiny(*options, "train.batch_size=8"))
    assert other.memory.estimate.peak_bytes < first.memory.estimate.peak_bytes
    assert len(costs._counted) == 2
