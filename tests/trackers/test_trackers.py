"""Trackers mirror the record: read back from what they wrote."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.trackers import flat_numbers
from trackers.wandb_files import read_offline


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_wandb_offline_holds_config_history_and_summary(tiny, offline):
    cfg = tiny("tracker=wandb", "train.epochs=2", "train.seed=3")
    record = run(cfg)
    identity = identify(cfg)
    (file,) = identity.folder.glob("wandb/offline-run-*/*.wandb")
    mirror = read_offline(file)

    start = mirror.start
    assert (start.run_id, start.run_group, start.job_type) == (identity.key, "lora-smoke-tiny_bert", "lora")
    assert start.display_name == identity.name
    assert (start.project, list(start.tags)) == ("petl_bench", ["smoke"])
    assert mirror.config["train"]["seed"] == 3
    assert set(mirror.config) >= {"backbone", "method", "layers", "task", "train"}
    assert "study" not in mirror.config

    rows = mirror.points
    assert [row["step"] for row in rows] == [4, 8]
    assert rows[1]["validation/accuracy"] == rows[1]["selection_score"] == record.history[1].scores["accuracy"]
    assert rows[1]["train/loss"] == pytest.approx(record.history[1].train_loss)
    assert mirror.axes == {"step"}

    summary = mirror.summary
    assert summary["scores/best/accuracy"] == summary["score"] == record.scores.best["accuracy"]
    assert summary["selection_score"] == max(entry.scores["accuracy"] for entry in record.history)
    assert summary["params/trainable"] == record.params.trainable
    assert summary["status"] == "finished"


def test_no_remote_user_host_or_home_is_recorded(tiny, offline, tmp_path, monkeypatch):
    home = tmp_path / "home of alice"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PETL_SECRET", "hunter2")
    monkeypatch.setattr("getpass.getuser", lambda: "alice-the-user")
    monkeypatch.chdir(home / "work")
    for words in (["init", "-q"], ["remote", "add", "origin", "https://example.org/hidden-remote.git"]):
        subprocess.run(["git", *words], check=True)
    cfg = tiny("tracker=wandb", f"runs_dir={home / 'work' / 'runs'}", f"data_root={home / 'data'}")
    record = run(cfg)
    assert (record.config["runs_dir"], record.config["data_root"]) == ("~/work/runs", "~/data")
    # The logs of W&B's client stay on this machine.
    files = [file for file in home.rglob("*") if file.is_file() and not {".git", "logs"} & set(file.parts)]
    files = [file for file in files if not file.name.startswith("debug")]
    assert {"result.json", "log.txt"} < {file.name for file in files}
    # The program's path; under xdist it may be no more than `-c`.
    program = [argument for argument in sys.argv[:1] if "/" in argument]
    private = [text.encode() for text in (str(home), "hunter2", "alice-the-user", "hidden-remote", *program)]
    # The name of a host may be so short that any binary file holds it: as JSON writes it, and protobuf with its length.
    host = socket.gethostname().encode()
    private += [b'"' + host + b'"', bytes([len(host)]) + host]
    found = {(file.name, text) for file in files for text in private if text in file.read_bytes()}
    assert not found


def test_a_multirun_opens_one_wandb_run_each(tiny, offline):
    first, second = tiny("tracker=wandb"), tiny("tracker=wandb", "train.seed=1")
    run(first), run(second)
    for cfg in (first, second):
        assert len(list(identify(cfg).folder.glob("wandb/offline-run-*/*.wandb"))) == 1


def test_wandb_disabled_by_its_variable(tiny, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    cfg = tiny("tracker=wandb")
    assert run(cfg).status == "finished"
    assert not list(identify(cfg).folder.glob("wandb/*run-*"))


def test_tensorboard_holds_history_and_results(tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = tiny("tracker=tensorboard", "train.epochs=2")
    record = run(cfg)
    events = EventAccumulator(str(identify(cfg).folder / "tensorboard"))
    events.Reload()
    points = events.Scalars("validation/accuracy")
    assert [point.step for point in points] == [4, 8]
    assert [point.value for point in points] == pytest.approx([entry.scores["accuracy"] for entry in record.history])
    assert events.Scalars("record/params/trainable")[0].value == record.params.trainable


def test_a_tracker_that_fails_at_the_end_loses_nothing(tiny, monkeypatch, caplog):
    from petl_bench.trackers import TensorBoardTracker

    def broken(*_):
        raise ConnectionError("gone")

    monkeypatch.setattr(TensorBoardTracker, "finish", broken)
    cfg = tiny("tracker=tensorboard")
    assert run(cfg).status == "finished"
    assert (identify(cfg).folder / "result.json").is_file()
    assert any("without it" in message for message in caplog.messages)


def test_flat_numbers_are_numbers():
    content = {"a": 1, "b": {"c": 2.5, "d": None, "e": "text", "f": True}, "g": [1]}
    assert flat_numbers(content) == {"a": 1, "b/c": 2.5}
