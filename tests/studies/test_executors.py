"""Studies on submitit's processes of this machine and on Ray, of one node and of two; who gets which GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest

from forked import Command
from found_records import find_records
from petl_bench.cli import main
from petl_bench.errors import RequestError, RunError
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies import EXECUTORS
from petl_bench.studies import executors as local
from petl_bench.studies.definition import ExecutorConfig
from petl_bench.studies.executors import start_workers
from petl_bench.studies.folder import StudyFolder

STUDY = """
settings: [backbone=tiny_bert, task.num_train_examples=32, train.epochs=1, measure.ledger=false]
methods: {lora: [], misnamed: [method=lora, 'method.targets=[nothere]']}
tasks: {demo: []}
"""


def check_runs(folder, code, stdout, stderr):
    assert code == 1, stderr
    assert "2 runs: 1 finished, 1 failed" in stdout
    records, _ = find_records([folder / "runs"])
    assert sorted(record.status for record in records) == ["failed", "finished"]


# Each worker imports all anew, so one is the quick test.
by_workers = pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])


@by_workers
def test_submitit_makes_the_same_runs(workers, tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "mine.yaml").write_text(STUDY)
    words = ["executor=slurm", "executor.cluster=local", f"executor.workers={workers}"]
    study = Command(["study", "mine.yaml", *words], tmp_path, tmp_path / "output")
    stdout, stderr = study.communicate(timeout=120)
    check_runs(tmp_path, study.returncode, stdout, stderr)
    assert list((tmp_path / "runs" / "mine" / ".study" / "submitit").glob("*_result.pkl"))


@by_workers
def test_ray_makes_the_same_runs(workers, tmp_path):
    """In a process of its own from the start: Ray's client does not work in one that was forked."""
    pytest.importorskip("ray")
    (tmp_path / "mine.yaml").write_text(STUDY)
    done = subprocess.run(
        [sys.executable, "-m", "petl_bench", "study", "mine.yaml", f"executor.workers={workers}", "executor=ray"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    check_runs(tmp_path, done.returncode, done.stdout, done.stderr)


TWO_NODES = """
import subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
words = ["executor=ray", f"executor.address={cluster.address}", "executor.workers=2"]
study = subprocess.Popen([sys.executable, "-m", "petl_bench", "study", "mine.yaml", *words])
while study.poll() is None and len(list(Path("runs").glob("mine/*/result.json"))) < 2:
    time.sleep(0.1)
assert study.poll() is None
cluster.remove_node(second, allow_graceful=False)
code = study.wait()
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_makes_every_run(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "mine.yaml").write_text(STUDY.replace(", misnamed: [method=lora, 'method.targets=[nothere]']", "")
                                        + "seeds: [0, 1, 2, 3, 4, 5]\n")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "6 runs: 6 finished" in done.stdout


def test_every_executor_that_the_command_line_names_has_its_class():
    assert tuple(local._CLASSES) == EXECUTORS


def test_without_a_cluster_the_way_out_is_named(tmp_path):
    pytest.importorskip("submitit")
    folder = StudyFolder(tmp_path)
    with pytest.raises(RequestError, match=r"executor\.cluster=slurm"):
        start_workers(ExecutorConfig(name="slurm"), folder, "plan.json", [])
    with pytest.raises(RequestError, match="nothere"):
        start_workers(ExecutorConfig(name="slurm", cluster="local", submitit={"nothere": 1}), folder, "plan.json", [])


def test_a_dry_run_shows_what_sbatch_would_be_given_and_writes_nothing(tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(STUDY)
    words = ["study", "mine.yaml", "--dry-run", "executor=slurm", "executor.submitit.slurm_partition=gpu"]
    assert main([*words, "executor.workers=5", "executor.submitit.timeout_min=90"]) == 0
    lines = capsys.readouterr().out.partition("#!/bin/bash")[2].splitlines()
    # Two runs are left, so there are two jobs.
    expected = ["array=0-1%2", "partition=gpu", "time=90", "cpus-per-task=4"]
    assert [f"#SBATCH --{one}" for one in expected if f"#SBATCH --{one}" not in lines] == []
    folder = tmp_path.resolve() / "runs" / "mine" / ".study" / "submitit"
    assert any(line.startswith("srun ") and f"submitit.core._submit {folder}" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert main([*words, "executor.submitit.nothere=1"]) == 2
    assert "nothere" in capsys.readouterr().err


def test_without_submitit_a_dry_run_says_what_makes_the_script(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (tmp_path / "mine.yaml").write_text(STUDY)
    assert main(["study", "mine.yaml", "--dry-run", "executor=slurm"]) == 0
    printed = capsys.readouterr()
    assert "sbatch" not in printed.out
    assert "submitit, which makes the script for sbatch, is not installed" in printed.err


class Recorder:
    """Stands in for a worker process: keeps what it was started with."""

    started: list[dict[str, str]] = []  # noqa: RUF012

    def __init__(self, words, env, **_settings):
        Recorder.started.append(env)
        self.pid = 1

    def poll(self):
        return None


@pytest.mark.parametrize(
    ("visible", "settings", "expected"),
    [
        (["0", "1"], {}, ["0", "1"]),
        (["4", "7"], {"runs_per_gpu": 2}, ["4", "7", "4", "7"]),
        (["0"], {"workers": 3}, ["0", "0", "0"]),
    ],
)
def test_gpus_are_dealt_out(visible, settings, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "started", [])
    monkeypatch.setattr(local, "visible_gpus", lambda: visible)
    monkeypatch.setattr(local.subprocess, "Popen", Recorder)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runs = [_Run(str(number)) for number in range(9)]
    local.LocalWorkers(ExecutorConfig(**settings), StudyFolder(tmp_path), "plan.json", runs)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in Recorder.started] == expected
    assert all(int(env["OMP_NUM_THREADS"]) >= 1 for env in Recorder.started)


def test_without_gpus_one_worker_keeps_all_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "started", [])
    monkeypatch.setattr(local, "visible_gpus", list)
    monkeypatch.setattr(local.subprocess, "Popen", Recorder)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    local.LocalWorkers(ExecutorConfig(), StudyFolder(tmp_path), "plan.json", [_Run("a"), _Run("b")])
    assert len(Recorder.started) == 1
    assert "OMP_NUM_THREADS" not in Recorder.started[0]


class Ended:
    """Stands in for worker processes that end with these codes, one after the other; the last one works on."""

    codes: list[int] = []  # noqa: RUF012

    def __init__(self, *_words, **_settings):
        self.pid, self.code = 7, Ended.codes.pop(0) if Ended.codes else None

    def poll(self):
        return self.code

    def send_signal(self, _signum):
        self.code = 0

    def wait(self, _seconds):
        return self.code


@pytest.fixture
def workers(tmp_path, monkeypatch):
    def start(codes):
        monkeypatch.setattr(Ended, "codes", list(codes))
        monkeypatch.setattr(local, "visible_gpus", list)
        monkeypatch.setattr(local.subprocess, "Popen", Ended)
        folder, run = StudyFolder(tmp_path), PlannedRun("lora", "demo", 0, "key", "folder", [])
        folder.private.mkdir()
        return local.LocalWorkers(ExecutorConfig(), folder, "plan.json", [run]), folder, run

    return start


def test_a_worker_that_ends_with_empty_hands_is_replaced_but_not_for_ever(workers):
    """As one that waited for others and was terminated."""
    alive, _, _ = workers([143, -9])
    assert [alive.alive() for _ in range(3)] == [True] * 3


def test_workers_that_cannot_start_are_told_of(workers):
    alive, folder, _ = workers([1] * 9)
    with pytest.raises(RunError, match=str(folder.private / "worker-0.log")):
        for _ in range(5):
            alive.alive()


@pytest.mark.parametrize("code", [0, -9, 143])
def test_a_run_whose_process_ends_again_and_again_has_failed(workers, code):
    alive, folder, run = workers([code, code, 0])
    holder = folder.private / f"{run.key}.holder"
    holder.write_text(json.dumps({"pid": 7, "host": socket.gethostname()}))
    assert alive.alive()
    assert folder.record(run) is None
    assert alive.alive()
    assert folder.record(run).status == "failed"
    assert "ended 2 times" in folder.record(run).error


def test_a_holder_on_another_machine_is_another_process(workers):
    alive, folder, run = workers([0])
    (folder.private / f"{run.key}.holder").write_text(json.dumps({"pid": 7, "host": "another"}))
    assert not alive.alive()


class _Run:
    def __init__(self, key):
        self.key = key
