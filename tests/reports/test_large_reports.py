"""A report on a thousand records does nothing more often than it must."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from petl_bench.reports import differences, groups
from petl_bench.reports.report import write_report
from reports.generated import record

METHODS, TASKS, SEEDS = 20, 10, 5


def write_records(root, tasks, seeds):
    """20 variants of a method, which must be told apart, on some tasks with some seeds."""
    rng = random.Random(0)
    for variant in range(METHODS):
        for task in range(tasks):
            for seed in range(seeds):
                made = record("lora", f"task{task}", seed, rng.random(), key=f"{variant}-{task}-{seed}")
                made.config["method"]["r"] = variant
                (root / made.run_key).mkdir(parents=True)
                (root / made.run_key / "result.json").write_text(json.dumps(made.to_dict(), indent=2))
    return root


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("runs"), 2, 2)


def test_a_thousand_records_are_described_once_and_each_pair_is_tested_once(tmp_path, monkeypatch):
    """Repeating any of these made large reports slow."""
    folder = write_records(tmp_path / "runs", TASKS, SEEDS)
    calls = Counter()

    def count(module, name):
        original = getattr(module, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(groups, "_shown_settings")
    count(differences, "_difference")
    count(differences, "sign_flips")
    written = []
    write_report([str(folder)], "json", None, written.append)
    assert all(f"lora r={variant}" in written[0] for variant in range(METHODS))
    assert calls["_shown_settings"] == METHODS * TASKS * SEEDS
    assert calls["_difference"] == TASKS * METHODS * (METHODS - 1) / 2
    # Over data sets, every pair in one test: for the averages in bold, and for the comparisons.
    assert calls["sign_flips"] == 2


@pytest.mark.parametrize("form", ["table", "md", "latex", "csv"])
def test_every_form_names_every_variant(smaller, form, capsys):
    written = []
    write_report([str(smaller)], form, None, written.append)
    text = written[0] if written else capsys.readouterr().out
    assert all(text.count(f"lora r={variant}") >= 1 for variant in range(METHODS))
