"""Records: the schema, the run key, the store."""

from __future__ import annotations

import dataclasses
import errno
import json
import os

import pytest

from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.records.schema import (
    SCHEMA_VERSION,
    DeviceMemory,
    HistoryEntry,
    Memory,
    MemoryEstimate,
    Params,
    Record,
    Scores,
)
from petl_bench.records.store import RunFolder, locate_records
from petl_bench.run.lifecycle import identify
from reports.made_records import made_record

FIELDS = {  # the schema, version 1: fields are only ever added
    "schema_version", "run_key", "status", "error", "config", "protocol", "layers", "frozen", "params", "scores",
    "history", "time", "memory", "flops", "inference", "data", "versions", "hardware", "git",
    "resumed_at_updates", "skipped_updates", "key_version", "ended_at", "base_files", "stored_files", "tagging",
    "threshold", "ood", "baselines",
}  # fmt: skip


def record(**changes) -> Record:
    filled = Record(
        run_key="abc",
        config={"a": {"b": 1}},
        params=Params(10, 8, 2, 1, 1, 25.0),
        scores=Scores({"accuracy": 0.5}, {"accuracy": 0.25}, 1.0),
        history=[HistoryEntry(1.0, 5, 0.7, {"accuracy": 0.5}, 0.1)],
        memory=Memory(
            estimate=MemoryEstimate(1, 2, 3, 4, 5, 6, 7, 8),
            device=DeviceMemory(1, 2, 3, 4, 0),
            process_peak_rss_bytes=9,
        ),
    )
    return dataclasses.replace(filled, **changes)


def test_the_schema_has_its_fields():
    assert set(record().to_dict()) == FIELDS
    assert record().to_dict()["schema_version"] == SCHEMA_VERSION == 2


def test_a_record_reads_back_equal():
    assert Record.from_dict(json.loads(json.dumps(record().to_dict()))) == record()


def test_what_was_not_measured_is_null():
    content = record(memory=Memory()).to_dict()
    assert content["memory"] == {"estimate": None, "device": None, "process_peak_rss_bytes": None}
    assert content["flops"] is content["inference"] is None


def test_numbers_that_json_lacks_are_null():
    broken = record(history=[HistoryEntry(1.0, 5, float("nan"), {"accuracy": float("inf")}, 0.1)])
    assert broken.to_dict()["history"][0]["train_loss"] is None
    json.dumps(broken.to_dict(), allow_nan=False)


def test_unknown_fields_of_later_programs_are_left_out():
    content = record().to_dict() | {"new_field": 1}
    content["params"]["new_count"] = 2
    assert Record.from_dict(content) == record()


@pytest.mark.parametrize("content", [{}, {"schema_version": 99}, {"schema_version": 1}, {"schema_version": "1"}])
def test_what_is_no_record_is_refused(content):
    with pytest.raises(ValueError, match=r"schema_version|not a record"):
        Record.from_dict(content)


def key(*overrides: str) -> str:
    return identify(load_config(list(overrides))).key


@pytest.fixture(scope="module")
def default_key():
    return key()


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=1",
        "train.learning_rate=1e-5",
        "method.r=4",
        "task.max_length=16",
        "layers=top",
        "backbone=tiny_bert",
    ],
)
def test_what_can_change_the_outcome_changes_the_key(override, default_key):
    assert key(override) != default_key


@pytest.mark.parametrize(
    "override",
    [
        "runs_dir=elsewhere",
        "force=true",
        "tracker=wandb",
        "data_root=/nowhere",
        "train.learning_rate=${method.default_learning_rate}",
    ],
)
def test_where_things_lie_does_not(override, default_key):
    assert key(override) == default_key


def test_the_key_is_stable_over_processes_and_versions():
    # A change here makes every finished run of every user be made again.
    from petl_bench.records.run_key import run_key

    assert run_key({"method": {"r": 8}, "runs_dir": "x"}, {"train": "00"}) == "6a88350d9749"


def test_a_run_on_a_cpu_has_the_key_that_auto_had_before_it_was_resolved():
    from petl_bench.records.run_key import run_key

    keys = [run_key({"train": {"device": device}}, {}) for device in ("auto", "cpu", "cuda")]
    assert keys[0] == keys[1] != keys[2]


def test_the_content_of_local_files_is_part_of_the_key(tmp_path):
    train = tmp_path / "train.csv"
    train.write_text("text,label\na,x\nb,y\n")
    custom = ["task=custom", f"task.train_file={train}"]
    before = key(*custom)
    moved = tmp_path / "moved.csv"
    moved.write_text(train.read_text())
    assert key("task=custom", f"task.train_file={moved}") == before
    train.write_text("text,label\na,x\nb,x\n")
    assert key(*custom) != before


def test_a_file_of_the_same_size_and_time_has_another_key(tmp_path):
    train = tmp_path / "train.csv"
    keys = []
    for content in ("text,label\na,x\nb,y\n", "text,label\na,y\nb,x\n"):
        train.write_text(content)
        os.utime(train, (0, 0))
        keys.append(key("task=custom", f"task.train_file={train}"))
    assert keys[0] != keys[1]


def test_the_parts_of_a_folder_are_part_of_the_key(tmp_path):
    for part in ("a", "b"):
        (tmp_path / f"{part}.parquet").write_text(part)
    custom = ["task=custom", f"task.train_file={tmp_path}"]
    both = key(*custom)
    (tmp_path / "b.parquet").unlink()
    assert key(*custom) != both


def test_every_file_of_a_local_backbone_is_part_of_the_key(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vocab.txt").write_text("a")
    before = key(f"backbone.path={tmp_path}")
    # The folder takes the place of the named backbone.
    assert key("backbone=bert_base", f"backbone.path={tmp_path}") == before
    (tmp_path / "vocab.txt").write_text("b")
    assert key(f"backbone.path={tmp_path}") != before


def test_a_folder_is_named_for_its_run():
    name = identify(load_config(["task=smoke", "train.seed=3", "runs_dir=there"])).folder
    assert str(name).startswith("there/smoke-lora-minilm-s3-")


def test_only_finished_records_end_a_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.finished() is None
    for status in ("failed", "interrupted", "diverged", "out_of_memory"):
        folder.write(record(status=status))
        assert folder.read().status == status
        assert folder.finished() is None
    folder.write(record())
    assert folder.finished() == record()


def test_a_failed_repetition_keeps_the_finished_record(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write(record())
    folder.write(record(status="failed", error="the second time"))
    assert folder.finished() == record()


def test_a_record_is_whole_or_not_there(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write(record(run_key="old"))

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("petl_bench.records.store.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        folder.write(record(run_key="new"))
    assert folder.finished().run_key == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.replace_folder("adapter") as target:
        (target / "first").touch()
    with pytest.raises(RuntimeError), folder.replace_folder("adapter") as target:
        (target / "half").touch()
        raise RuntimeError
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["first"]
    with folder.replace_folder("adapter") as target:
        (target / "second").touch()
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["second"]
    assert [item.name for item in tmp_path.iterdir()] == ["adapter"]


def test_records_are_found_and_broken_ones_named(tmp_path):
    RunFolder(tmp_path / "a" / "b").write(record())
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "result.json").write_text("{")
    records, unreadable = locate_records([tmp_path])
    assert list(records.values()) == [record()]
    assert len(unreadable) == 1
    assert "c/result.json" in unreadable[0]
    with pytest.raises(RequestError, match="no such folder"):
        locate_records([tmp_path / "nowhere"])


def test_the_search_for_records_has_a_bound(tmp_path, monkeypatch):
    runs = tmp_path / "study" / "runs"
    for name in ("a", "b"):
        RunFolder(runs / name).write(record())
    # A link to a folder around the search, which would lead everywhere, and a run's own folders are left out.
    (runs / "up").symlink_to(tmp_path)
    for i in range(5):
        (runs / "a" / "adapter" / str(i)).mkdir(parents=True)
        (tmp_path / str(i)).mkdir()
    monkeypatch.setattr("petl_bench.records.store._MOST_FOLDERS", 3)
    assert len(locate_records([runs])[0]) == 2
    (runs / "c").mkdir()
    with pytest.raises(RequestError, match=r"more than 3 folders, .*name the folders of the runs"):
        locate_records([runs])


@pytest.mark.parametrize(
    ("scores", "selection", "updates"),
    [
        # 95 % of 0.8 are 0.76, six tenths of the way from 0.7 at update 200 to 0.8 at 300.
        ([0.5, 0.7, 0.8], "best", 260.0),
        ([0.5, 0.7, 0.8, 0.6], "best", 260.0),
        # The mark follows the last score: 0.57.
        ([0.5, 0.7, 0.8, 0.6], "last", 135.0),
        ([0.8, 0.7, 0.6], "best", 100.0),
        ([0.0, 0.0], "best", None),
        ([-0.2, -0.1], "best", None),
        ([], "best", None),
    ],
)
def test_updates_until_95_percent_of_the_score_by_hand(scores, selection, updates):
    record = made_record("lora", "sst2", 0)
    record.protocol.selection, metric = selection, record.protocol.metric
    record.history = [HistoryEntry(i, 100 * i, 0.5, {metric: score}, 0.1) for i, score in enumerate(scores, start=1)]
    assert record.updates_to_95_percent == (None if updates is None else pytest.approx(updates))
    record.protocol.higher_is_better = False
    assert record.updates_to_95_percent is None


@pytest.mark.parametrize(("majority", "has_value"), [(0.49, True), (0.5, False), (0.6, False)])
def test_a_run_that_learned_nothing_does_not_converge(majority, has_value):
    record = made_record("lora", "sst2", 0)
    metric = record.protocol.metric
    record.scores.best[metric] = record.scores.last[metric] = 0.5
    record.history = [HistoryEntry(i, 100 * i, 0.5, {metric: score}, 0.1) for i, score in ((1, 0.5), (2, 0.8))]
    record.baselines = {"majority": {metric: majority}}
    assert (record.updates_to_95_percent is not None) == has_value
