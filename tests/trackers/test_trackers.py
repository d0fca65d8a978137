"""Trackers mirror the record: read back from what they wrote."""

from __future__ import annotations

import json
import struct

import pytest

from petl_bench.identity import identify
from petl_bench.runner import run
from petl_bench.trackers.tracker import flat_numbers


def wandb_records(file):
    """Reads W&B's offline file: a LevelDB log of protobuf records behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content = file.read_bytes()
    position, pending = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pending += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            yield record
            pending = b""


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
    parts = list(wandb_records(file))

    (start,) = [part.run for part in parts if part.WhichOneof("record_type") == "run"][:1]
    assert (start.run_id, start.run_group, start.job_type) == (identity.key, "lora-demo-tiny_bert", "lora")
    assert start.display_name == identity.name
    assert start.project == "petl_bench"
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert config["train"]["seed"] == 3
    assert set(config) >= {"backbone", "method", "layers", "task", "train"}

    points = [part.history for part in parts if part.WhichOneof("record_type") == "history"]
    rows = [{(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in point.item} for point in points]
    assert [row["step"] for row in rows] == [4, 8]
    assert rows[1]["validation/accuracy"] == record.history[1].scores["accuracy"]
    assert rows[1]["train/loss"] == pytest.approx(record.history[1].train_loss)

    axes = [part.metric for part in parts if part.WhichOneof("record_type") == "metric"]
    assert any(axis.step_metric == "step" for axis in axes)

    summary = {}
    for part in parts:
        if part.WhichOneof("record_type") == "summary":
            summary |= {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in part.summary.update}
    assert summary["scores/best/accuracy"] == record.scores.best["accuracy"]
    assert summary["params/trainable"] == record.params.trainable
    assert summary["status"] == "finished"


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
    from petl_bench.trackers.tensorboard import TensorBoardTracker

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
