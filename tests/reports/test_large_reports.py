"""A thousand records are reported while one waits."""

from __future__ import annotations

import json
import random
import time

import pytest

from petl_bench.reports.report import write_report
from reports.generated import record

METHODS, TASKS, SEEDS = 20, 10, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 variants of a method, which must be told apart, on 10 tasks with 5 seeds."""
    root = tmp_path_factory.mktemp("runs")
    rng = random.Random(0)
    for variant in range(METHODS):
        for task in range(TASKS):
            for seed in range(SEEDS):
                made = record("lora", f"task{task}", seed, rng.random(), key=f"{variant}/{task}/{seed}")
                made.config["method"]["r"] = variant
                (root / made.run_key).mkdir(parents=True)
                (root / made.run_key / "result.json").write_text(json.dumps(made.to_dict(), indent=2))
    return root


@pytest.mark.parametrize("form", ["table", "md", "latex", "csv", "json"])
def test_a_thousand_records_are_reported_in_seconds(folder, form, capsys):
    written = []
    start = time.perf_counter()
    write_report([str(folder)], form, None, written.append)
    seconds = time.perf_counter() - start
    text = written[0] if written else capsys.readouterr().out
    assert all(text.count(f"lora r={variant}") >= 1 for variant in range(METHODS))
    assert seconds < 5
