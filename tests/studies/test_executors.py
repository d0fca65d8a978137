"""Studies on submitit's processes of this machine and on a Ray of one node; who gets which GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from petl_bench.errors import RequestError
from petl_bench.records.store import find_records
from petl_bench.studies.config import ExecutorConfig
from petl_bench.studies.executors import local, start_workers
from petl_bench.studies.folder import StudyFolder

STUDY = """
settings: [backbone=tiny_bert, task.num_train_examples=32, train.epochs=1, measure.ledger=false]
methods: {lora: [], misnamed: [method=lora, 'method.targets=[nothere]']}
tasks: {demo: []}
"""


@pytest.mark.parametrize(
    ("package", "words"),
    [("submitit", ["executor=slurm", "executor.cluster=local"]), ("ray", ["executor=ray"])],
    ids=["submitit", "ray"],
)
def test_engines_make_the_same_runs(package, words, tmp_path):
    pytest.importorskip(package)
    (tmp_path / "mine.yaml").write_text(STUDY)
    done = subprocess.run(
        [sys.executable, "-m", "petl_bench", "study", "mine.yaml", "executor.workers=2", *words],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "2 runs: 1 finished, 1 failed" in done.stdout
    records, _ = find_records([tmp_path / "runs"])
    assert sorted(record.status for record in records) == ["failed", "finished"]
    if package == "submitit":
        assert list((tmp_path / "runs" / "mine" / ".study" / "submitit").glob("*_result.pkl"))


def test_without_a_cluster_the_way_out_is_named(tmp_path):
    pytest.importorskip("submitit")
    folder = StudyFolder(tmp_path)
    with pytest.raises(RequestError, match=r"executor\.cluster=slurm"):
        start_workers(ExecutorConfig(name="slurm"), folder, [])
    with pytest.raises(RequestError, match="nothere"):
        start_workers(ExecutorConfig(name="slurm", cluster="local", submitit={"nothere": 1}), folder, [])


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
    local.LocalWorkers(ExecutorConfig(**settings), StudyFolder(tmp_path), runs)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in Recorder.started] == expected
    assert all(int(env["OMP_NUM_THREADS"]) >= 1 for env in Recorder.started)


def test_without_gpus_one_worker_keeps_all_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "started", [])
    monkeypatch.setattr(local, "visible_gpus", list)
    monkeypatch.setattr(local.subprocess, "Popen", Recorder)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    local.LocalWorkers(ExecutorConfig(), StudyFolder(tmp_path), [_Run("a"), _Run("b")])
    assert len(Recorder.started) == 1
    assert "OMP_NUM_THREADS" not in Recorder.started[0]


class _Run:
    def __init__(self, key):
        self.key = key
