"""Studies as a user runs them: killed at any instant, shared by processes, with members that fail."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from forked import Command
from found_records import find_records
from petl_bench.cli import main
from petl_bench.records.study_file import read_study

GRID = """
settings: [backbone=tiny_bert, backbone.architecture.num_hidden_layers=2, task.num_train_examples=96,
  task.max_length=16, train.epochs={epochs}, train.batch_size=8, train.checkpoint_seconds=0, measure.ledger=false,
  measure.inference=false]
methods:
  lora: []
  bitfit: []
tasks:
  demo: []
seeds: {seeds}
"""
TROUBLE = """
settings: [backbone=tiny_bert, backbone.architecture.num_hidden_layers=2, task.num_train_examples=64,
  task.max_length=16, train.epochs=1, measure.ledger=false, measure.inference=false]
methods:
  lora: []
  misnamed: [method=lora, 'method.targets=[nothere]']
  diverging: [method=full, train.learning_rate=1e30, train.max_grad_norm=1e30, train.epochs=8]
tasks:
  demo: []
seeds: [0]
"""


def start(folder, *overrides):
    """Starts a study as a process of its own, which can be killed."""
    return Command(["study", "mine.yaml", *overrides], folder, Path(tempfile.mkdtemp(dir=folder)) / "output")


def start_as_a_user_does(folder, *overrides):
    """Starts a study from nothing, with workers that start from nothing."""
    return subprocess.Popen(
        [sys.executable, "-m", "petl_bench", "study", "mine.yaml", *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=300):
    stdout, stderr = process.communicate(timeout=seconds)
    return process.returncode, stdout, stderr


def weights(runs):
    """The bytes of every adapter, and every score, by run."""
    records, unreadable = find_records([runs])
    assert not unreadable
    assert all(record.status == "finished" for record in records)
    kept = {str(file.relative_to(runs)): file.read_bytes() for file in sorted(runs.glob("*/adapter/*"))}
    scores = {record.run_key: (record.scores, [entry.train_loss for entry in record.history]) for record in records}
    return kept, scores


@pytest.fixture
def study(monkeypatch, capsys):
    """Runs a study in this process, where parts of it can be replaced: gives the exit code and what it printed."""

    def call(folder, *arguments):
        monkeypatch.chdir(folder)
        capsys.readouterr()
        code = main(["study", "mine.yaml", *arguments])
        return code, capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    (path / "mine.yaml").write_text(GRID.format(seeds=[0, 1], epochs=2))
    return path


@pytest.fixture(scope="module")
def undisturbed(folder):
    code, stdout, stderr = finish(start_as_a_user_does(folder, "runs_dir=undisturbed"))
    assert code == 0, stderr
    assert "4 runs: 4 finished" in stdout
    return weights(folder / "undisturbed")


def kill_and_restart(folder, kills, runs_dir, *, instants, longest_wait=2.0):
    """Starts the study again and again, and kills it at a random instant of its work each time."""
    ended_early = 0
    for _ in range(kills):
        process = start(folder, f"runs_dir={runs_dir}")
        # Half of them while something is trained, the others before or between runs.
        sign = "*/checkpoint/step-*" if instants.random() < 0.5 else ".study/*.holder"
        while process.poll() is None and not list((folder / runs_dir).glob(sign)):
            time.sleep(0.02)
        time.sleep(instants.uniform(0, longest_wait))
        ended_early += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # Its workers end with it: nothing goes on without the user.
        deadline = time.monotonic() + 10
        study = read_study(folder / runs_dir)
        while time.monotonic() < deadline and any(_held(folder / runs_dir, run) for run in study.runs):
            time.sleep(0.05)
    return ended_early


def _held(path, run):
    from petl_bench.studies.folder import StudyFolder

    return StudyFolder(path).holder(run) is not None


def test_a_study_killed_again_and_again_ends_with_the_same_bits(folder, undisturbed):
    assert kill_and_restart(folder, 2, "killed", instants=random.Random(7), longest_wait=0.5) >= 1
    code, _, stderr = finish(start(folder, "runs_dir=killed"))
    assert code == 0, stderr
    assert weights(folder / "killed") == undisturbed
    assert not list((folder / "killed").glob("*/checkpoint"))
    assert not list((folder / "killed").glob("*/*.partial"))


@pytest.mark.slow
def test_twelve_runs_killed_at_ten_random_instants(tmp_path):
    (tmp_path / "mine.yaml").write_text(GRID.format(seeds=list(range(6)), epochs=6))
    assert finish(start(tmp_path, "runs_dir=undisturbed"))[0] == 0
    assert kill_and_restart(tmp_path, 10, "killed", instants=random.Random(0)) >= 5
    assert finish(start(tmp_path, "runs_dir=killed"))[0] == 0
    wanted = weights(tmp_path / "undisturbed")
    assert len(wanted[1]) == 12
    assert weights(tmp_path / "killed") == wanted
    resumed = [record for record in find_records([tmp_path / "killed"])[0] if record.resumed_at_updates]
    assert resumed


def test_two_processes_share_the_work_and_none_is_done_twice(folder, undisturbed):
    processes = [start(folder, "runs_dir=shared") for _ in range(2)]
    outcomes = [finish(process) for process in processes]
    assert [code for code, _, _ in outcomes] == [0, 0]
    assert weights(folder / "shared") == undisturbed
    for log in (folder / "shared").glob("*/log.txt"):
        # A run begins once.
        assert log.read_text().count("INFO petl_bench.run.run: run ") == 1
    assert all("4 runs: 4 finished" in stdout for _, stdout, _ in outcomes)


def test_a_terminated_study_goes_on_with_two_workers(folder, undisturbed):
    process = start(folder, "runs_dir=two")
    private = folder / "two" / ".study"
    while process.poll() is None and not list(private.glob("*.holder")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, _, stderr = finish(process)
    assert code == 143, stderr
    assert "the same command goes on" in stderr
    code, stdout, stderr = finish(start(folder, "runs_dir=two", "executor.workers=2"))
    assert code == 0, stdout + stderr
    assert len(list(private.glob("worker-*.log"))) == 2
    assert weights(folder / "two") == undisturbed


def test_nothing_is_started_for_a_study_that_is_done(folder, undisturbed, study, monkeypatch):
    monkeypatch.setattr("petl_bench.studies.study.start_workers", None)
    code, stdout = study(folder, "runs_dir=undisturbed", "--json")
    assert code == 0
    assert [run["status"] for run in json.loads(stdout)] == ["finished"] * 4


def test_a_worker_that_is_killed_is_replaced_and_a_run_that_kills_it_fails(folder, undisturbed):
    process = start(folder, "runs_dir=hunted")
    private = folder / "hunted" / ".study"
    killed, hunted = [], None
    while process.poll() is None and len(killed) < 2:
        for holder in private.glob("*.holder"):
            try:
                pid = json.loads(holder.read_text())["pid"]
            except (OSError, ValueError):
                continue
            if pid not in killed and hunted in (None, holder.stem):
                hunted = holder.stem
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.02)
    code, stdout, stderr = finish(process)
    assert code == 1, stderr
    assert "4 runs: 3 finished, 1 failed" in stdout
    assert "ended 2 times with signal 9 (SIGKILL)" in stdout
    found, _ = find_records([folder / "hunted"])
    scores = {record.run_key: record.scores for record in found if record.run_key != hunted}
    assert scores == {key: expected for key, (expected, _) in undisturbed[1].items() if key != hunted}


def test_members_that_fail_are_recorded_and_the_rest_is_finished(tmp_path, study, monkeypatch):
    (tmp_path / "mine.yaml").write_text(TROUBLE)
    code, stdout, stderr = finish(start(tmp_path))
    assert code == 1, stderr
    assert "3 runs: 1 finished, 1 failed, 1 diverged" in stdout
    assert "failed: misnamed on demo, seed 0: method.targets=nothere is not known" in stdout
    assert "diverged: diverging on demo, seed 0: " in stdout
    assert "lower train.learning_rate" in stdout
    statuses = {record.status for record in find_records([tmp_path / "runs"])[0]}
    assert statuses == {"finished", "failed", "diverged"}
    code, retried, _ = finish(start(tmp_path, "--retry", "failed"))
    assert (code, retried) == (1, stdout)
    assert list((tmp_path / "runs").glob("mine/*/diverged-*.json"))
    # Nothing is tried again unless it is asked for.
    monkeypatch.setattr("petl_bench.studies.study.start_workers", None)
    assert study(tmp_path) == (1, stdout)


def test_a_finished_study_of_a_hundred_runs_is_recognised_without_expanding_it(tmp_path, study, monkeypatch):
    from petl_bench.records.schema import Record
    from petl_bench.studies.definition import parse_request
    from petl_bench.studies.study import keep, prepare

    (tmp_path / "mine.yaml").write_text(
        "methods: {lora: [], full: [], head: [], bitfit: [], flat: []}\ntasks: {demo: [], few: [task=demo, "
        "task.num_train_examples=99]}\nsettings: [backbone=tiny_bert]\nseeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
    )
    prepared = prepare(str(tmp_path / "mine.yaml"), parse_request([f"runs_dir={tmp_path / 'runs'}"]))
    keep(prepared)
    config = {"method": {"name": "lora"}, "task": {"name": "demo"}, "train": {"seed": 0}}
    for run in prepared.runs:
        prepared.folder.run_folder(run).write(Record(run.key, config))
    # Composing a config for each run, and starting workers, is what would take long.
    monkeypatch.setattr("petl_bench.studies.study.expand", None)
    monkeypatch.setattr("petl_bench.studies.study.start_workers", None)
    code, stdout = study(tmp_path, "runs_dir=runs")
    assert code == 0
    assert "100 runs: 100 finished" in stdout
