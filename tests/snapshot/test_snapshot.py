"""Refactorings change nothing: runs, estimates and reports are what they were when snapshot.json was written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from snapshot.measure import HERE, METHODS, RUNS, SNAPSHOT, TINY, command, machine, plans, reports, run

EXPECTED = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
# Elsewhere the last bits of sums are others, and with them, after some updates, more than those.
SAME_MACHINE = EXPECTED["machine"] == machine()
# The quick tests run each method on one architecture, in turn. Those that are another in one setting are slow: the
# behaviour suite trains, saves and loads them, and the run keys of settings have tests of their own.
VARIANTS = ("full_top", "head_pooler", "pfeiffer", "parallel", "prefix_mlp", "coda_k2all")
BASIC = [method for method in METHODS if method not in VARIANTS]
IN_TURN = [(method, TINY[number % len(TINY)]) for number, method in enumerate(BASIC)]
QUICK = [pair if pair in RUNS else (pair[0], TINY[0]) for pair in IN_TURN]
ADAPTERS = sorted(path.name for path in (HERE / "adapters").iterdir())


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check_run(method: str, backbone: str, folder) -> None:
    found, expected = run(method, backbone, str(folder)), EXPECTED["runs"][f"{method} {backbone}"]
    for exact in ("run_key", "settings", "params", "estimate", "flops"):
        assert found[exact] == expected[exact], exact
    if SAME_MACHINE:
        assert found == expected
    for now, before in zip(found["history"], expected["history"], strict=True):
        assert now["train_loss"] == pytest.approx(before["train_loss"], rel=0.02)
        assert now["scores"] == pytest.approx(before["scores"], abs=0.05)


@pytest.mark.parametrize(("method", "backbone"), QUICK)
def test_run(method, backbone, tmp_path):
    check_run(method, backbone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "backbone"), [pair for pair in RUNS if pair not in QUICK])
def test_other_runs(method, backbone, tmp_path):
    check_run(method, backbone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_run_on_minilm(method, tmp_path, minilm):
    check_run(method, "minilm", tmp_path)


# Runs have the estimates of one batch; here are those of the largest that fits, too.
@pytest.mark.slow
@pytest.mark.parametrize("backbone", TINY)
def test_plan(backbone, estimates_here):
    assert plans(backbone) == EXPECTED["plans"][backbone]


def test_reports():
    found = reports()
    assert found.keys() == EXPECTED["reports"].keys()
    for table, rows in EXPECTED["reports"].items():
        assert found[table] == rows, table


@pytest.mark.parametrize("method", ADAPTERS)
def test_adapters_of_older_versions_predict_as_before(method, tmp_path):
    folder = shutil.copytree(HERE / "adapters" / method, tmp_path / method)
    expected = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    found = [json.loads(command("predict", str(folder), "--json", "--text", one["text"])) for one in expected]
    for now, before in zip(found, expected, strict=True):
        assert now["probabilities"] == pytest.approx(before["probabilities"], abs=1e-5)
    assert len({now["probabilities"]["positive"] for now in found}) > 1
