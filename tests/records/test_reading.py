"""Files whose fields hold other types than the schema's: named, left out, and no report fails for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from petl_bench.errors import RequestError
from petl_bench.records.predictions import Ood, OodScore, Tagging, TypeScores
from petl_bench.records.reading import check_hash, with_hash
from petl_bench.records.schema import Data, Flops, FrozenFeatures, HistoryEntry, Inference, Layers, MemoryAtPeak, Record
from petl_bench.records.store import RunFolder, locate_records, read_record
from petl_bench.records.study_file import read_study
from petl_bench.reports.report import write_report
from petl_bench.trackers.sync import sync
from reports.generated import record as made
from reports.generated import study

RESULTS = sorted((Path(__file__).parents[2] / "results").glob("**/result.json"))


def full_record() -> Record:
    """A record in which every section is filled."""
    record = made("lora", "mrpc", 0, 0.8)
    record.layers = Layers(1, 6, 6, 6, [1.0, None], [2.0, None], 100)
    record.frozen = FrozenFeatures(3, 1, False, "memory", 100, False)
    record.memory.estimate.at_peak = MemoryAtPeak(1, 2, 3, 4, 5)
    record.history = [HistoryEntry(1.0, 5, 0.7, {"accuracy": 0.5}, 0.1)]
    record.flops = Flops(10, 5)
    record.inference = Inference(32, 128, 1.5, 20.0, [1.0, 2.0], [1.0, 2.0], 3)
    record.data = Data("glue", None, "abc", {"train": 100})
    record.versions = {"torch": "2.8"}
    record.hardware = {"num_processes": 1}
    record.git = {"commit": "abc"}
    record.resumed_at_updates = [5]
    record.skipped_updates = 2
    record.key_version, record.ended_at = 2, "2026-01-02T03:04:05+00:00"
    record.base_files = {"model.safetensors": "ab"}
    record.stored_files = {"adapter/adapter_config.json": "cd"}
    record.tagging = Tagging("BIO", {"test": 3}, {"test": 1}, {"test": 0}, {"person": TypeScores(0.5, 0.25, 0.4, 8)})
    record.threshold = 0.5
    scores = [OodScore(0.9, 0.8, 0.7, 0.3, float(number)) for number in range(4)]
    record.ood = Ood("classes", 0.5, ["a", "b"], 30, "a rule", *scores)
    return record


CONTENT = full_record().to_dict()


def typed_fields(node, path=()):
    """The path of every value that the schema gives a type."""
    if path in (("config",), ("hardware",), ("git",)):
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if value is not None:
            yield (*path, key)
        if isinstance(value, dict | list):
            yield from typed_fields(value, (*path, key))


def wrong(value):
    """A value of another type."""
    return {"here": 1} if not isinstance(value, dict) else [1]


def changed(path, value) -> dict:
    content = json.loads(json.dumps(CONTENT))
    *parents, last = path
    node = content
    for parent in parents:
        node = node[parent]
    node[last] = value
    return content


def name(path) -> str:
    return re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, path)))


def at(path):
    node = CONTENT
    for key in path:
        node = node[key]
    return node


def test_the_full_record_is_full():
    assert all(value is not None for key, value in CONTENT.items() if key != "error")
    assert Record.from_dict(CONTENT) == full_record()


def test_every_field_of_another_type_is_named():
    paths = [path for path in typed_fields(CONTENT) if path != ("schema_version",)]
    assert len(paths) > 90
    for path in paths:
        with pytest.raises(ValueError, match=rf"not a record: {re.escape(name(path))} is "):
            Record.from_dict(changed(path, wrong(at(path))))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("scores", "high", "scores is 'high', not an object"),
        ("history", 3, "history is 3, not a list"),
        ("history", ["first"], "history[0] is 'first', not an object"),
        ("config", [], "config is [], not an object"),
        ("config", None, "config is null, not an object"),
        ("config.task", "mrpc", "config.task is 'mrpc', not an object"),
        ("config.train", None, "config.train is null, not an object"),
        ("config", {}, "config.backbone is missing"),
        ("config.method", {}, "config.method.name is missing"),
        ("config.method.type", 3, "config.method.type is 3, not text"),
        ("config.task.name", None, "config.task.name is null, not text"),
        ("config.backbone.path", 7, "config.backbone.path is 7, not text"),
        ("config.train.seed", "one", "config.train.seed is 'one', not a whole number"),
        ("config.tracker", "wandb", "config.tracker is 'wandb', not an object"),
        ("hardware.num_processes", "two", "hardware.num_processes is 'two', not a whole number"),
        ("hardware.processor", 7, "hardware.processor is 7, not text"),
        ("status", 1, "status is 1, not text"),
        ("status", None, "status is null, not text"),
        ("run_key", 7, "run_key is 7, not text"),
        ("params.trainable", "10", "params.trainable is '10', not a whole number"),
        ("params.trainable", 1.5, "params.trainable is 1.5, not a whole number"),
        ("params.trainable", True, "params.trainable is True, not a whole number"),
        ("params.trainable", None, "params.trainable is null, not a whole number"),
        ("protocol.higher_is_better", 1, "protocol.higher_is_better is 1, not true or false"),
        ("scores.best.accuracy", "0.8", "scores.best.accuracy is '0.8', not a number"),
        ("data.rows_per_split.train", "all", "data.rows_per_split.train is 'all', not a whole number"),
        ("versions.torch", 2.8, "versions.torch is 2.8, not text"),
        ("memory.estimate.at_peak", [1], "memory.estimate.at_peak is [1], not an object"),
        ("resumed_at_updates", "5", "resumed_at_updates is '5', not a list"),
        ("scores", {"best": {}, "last": {}}, "scores.best_epoch is missing"),
    ],
)
def test_a_wrong_field_is_named_in_one_sentence(path, value, said):
    with pytest.raises(ValueError, match=f"^not a record: {re.escape(said)}$"):
        Record.from_dict(changed(path.split("."), value))


def test_a_run_without_scores_needs_no_config():
    assert Record.from_dict(changed(["scores"], None) | {"config": {}}).config == {}
    with pytest.raises(ValueError, match=r"^not a record: config\.task is 3, not an object$"):
        Record.from_dict(changed(["scores"], None) | {"config": {"task": 3}})


@pytest.mark.parametrize("content", [[], None, "text"])
def test_what_is_no_object_is_told(tmp_path, content, caplog):
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match="No finished run"):
        list(sync([tmp_path]))
    assert [line for line in caplog.messages if "not an object" in line]


def test_long_values_are_cut_short():
    with pytest.raises(ValueError, match="not an object") as error:
        Record.from_dict(changed(["scores"], "x" * 10_000))
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("history.0.train_loss", None),  # stands for a loss that was not finite
        ("history.0.epoch", 1),
        ("scores.best.accuracy", 1),
        ("protocol.attention_implementation", None),
        ("layers.variability", [None, 1]),
        ("git", None),
        ("config.anything", [1, None, {"a": True}]),
        ("unknown_field", {"of": "a newer program"}),
    ],
)
def test_what_the_schema_allows_is_read(path, value):
    path = [int(key) if key.isdigit() else key for key in path.split(".")]
    assert Record.from_dict(changed(path, value)).run_key == CONTENT["run_key"]


@pytest.fixture
def folder(tmp_path):
    """A good record beside three that are none."""
    RunFolder(tmp_path / "good").write(full_record())
    for field, value in {"scores": "high", "history": 3, "config": []}.items():
        (tmp_path / field).mkdir()
        (tmp_path / field / "result.json").write_text(json.dumps(changed([field], value)))
    return tmp_path


def test_the_store_names_file_and_field(folder):
    records, unreadable = locate_records([folder])
    assert list(records.values()) == [full_record()]
    assert unreadable == [
        f"{folder}/config/result.json cannot be read: not a record: config is [], not an object",
        f"{folder}/history/result.json cannot be read: not a record: history is 3, not a list",
        f"{folder}/scores/result.json cannot be read: not a record: scores is 'high', not an object",
    ]


@pytest.mark.parametrize("form", ["table", "md", "latex", "csv", "json"])
def test_the_rest_is_reported(folder, form, capsys, caplog):
    written = []
    write_report([str(folder)], form, None, written.append)
    assert "lora" in (written[0] if written else capsys.readouterr().out)
    assert len([line for line in caplog.messages if "result.json cannot be read" in line]) == 3


def test_the_rest_is_mirrored(folder, caplog):
    assert [done.folder for done in sync([folder], dry_run=True)] == [str(folder / "good")]
    assert len([line for line in caplog.messages if "result.json cannot be read" in line]) == 3


def test_a_share_that_is_not_finite_is_left_out(folder):
    path = ["params", "trainable_share_of_backbone_percent"]
    (folder / "good" / "result.json").write_text(json.dumps(changed(path, None)))
    written = []
    write_report([str(folder)], "md", None, written.append)
    assert "lora" in written[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [("history.0.scores", {}), ("protocol.metric", "other"), ("protocol.selection", "other"), ("history", None)],
)
def test_a_point_without_the_primary_metric_is_mirrored(tmp_path, path, value):
    keys = [int(key) if key.isdigit() else key for key in path.split(".")]
    content = changed(keys, value)
    if value is None:
        del content["history"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert [done.state for done in sync([tmp_path], tracker="tensorboard")] == ["synced"]


def test_a_finished_record_without_scores_is_not_mirrored(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(changed(["protocol"], None)))
    with pytest.raises(RequestError, match="No finished run"):
        list(sync([tmp_path]))


def test_a_folder_in_a_records_place_is_named(tmp_path):
    file = tmp_path / "result.json"
    file.mkdir()
    with pytest.raises(RequestError, match=f"{re.escape(str(file))} cannot be read: Is a directory"):
        RunFolder(tmp_path).finished()


def test_such_a_run_is_made_again(folder):
    assert RunFolder(folder / "scores").finished() is None
    RunFolder(folder / "scores").write(full_record())
    assert RunFolder(folder / "scores").finished() == full_record()


def test_committed_records_keep_their_types():
    assert RESULTS
    for file in RESULTS:
        assert read_record(file).to_dict()["config"], file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": 3}, "runs is 3, not a list"),
        ({"runs": [{"method": "a"}]}, r"runs[0].task is missing"),
        ({"methods": ["a", 1]}, "methods[1] is 1, not text"),
        ({"claims": "none"}, "claims is 'none', not a list"),
        ({"published": [{"row": "a", "source": "b", "cells": {"t": 8}}]}, "published[0].cells.t is 8, not a list"),
        ({"costs": None}, "costs is null, not a list"),
        ({"published": [{"row": "a", "source": "b", "cells": {"t": []}}]}, "published[0].cells.t has no value"),
        ({"published": [{"row": "a", "source": "b", "cells": {"t": [None]}}]}, "published[0].cells.t has no value"),
    ],
)
def test_a_wrong_field_of_a_study_is_named(tmp_path, change, said):
    study(["lora"], ["mrpc"], 1).write(tmp_path)
    file = tmp_path / "study.json"
    file.write_text(json.dumps(with_hash(json.loads(file.read_text()) | change)))
    with pytest.raises(RequestError, match=re.escape(f"{file} cannot be read ({said})")):
        read_study(tmp_path)


def test_a_deeply_nested_part_is_one_sentence():
    nested = json.loads('{"a": ' * 500 + "1" + "}" * 500)
    with pytest.raises(ValueError, match=r"^not a record: it is nested too deeply$"):
        Record.from_dict(CONTENT | {"config": CONTENT["config"] | {"nested": nested}})


def test_half_a_surrogate_pair_is_no_nesting():
    config = CONTENT["config"] | {"data_root": "Stra\udcdfe"}
    with pytest.raises(
        ValueError, match=r"^not a record: it holds half of a surrogate pair, which UTF-8 cannot write$"
    ):
        Record.from_dict(CONTENT | {"config": config})


@pytest.mark.parametrize("content", [5, [], None, "content_sha256"])
def test_what_is_no_object_has_no_hash(content):
    with pytest.raises(ValueError, match=r"^it is .*, not an object: make it anew$"):
        check_hash(content)


BROKEN = {
    "[" * 100_000: "it is nested too deeply",
    f'{{"run_key": {"1" * 400}}}': "it holds a whole number of 400 digits",
}


@pytest.mark.parametrize("text", BROKEN, ids=["nested", "long"])
def test_what_cannot_be_computed_with_is_left_out(folder, text, caplog):
    file = folder / "scores" / "result.json"
    file.write_text(text)
    write_report([str(folder)], "csv", None, lambda _: None)
    assert f"{file} cannot be read: {BROKEN[text]}" in caplog.messages
    caplog.clear()
    assert len(list(sync([folder], dry_run=True))) == 1
    assert f"{file} cannot be read: {BROKEN[text]}" in caplog.messages


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *BROKEN.items(),
        ("[]", "it is [], not an object"),
        ("null", "it is null, not an object"),
        ('{"version": null}', "version is null, not a whole number"),
        ('{"version": 99}', "its version 99 is newer than this program: upgrade petl-bench"),
    ],
    ids=["nested", "long", "list", "null", "no version", "newer"],
)
def test_a_file_that_is_no_study_is_told_in_words(tmp_path, text, said):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(RequestError, match=re.escape(f"{tmp_path / 'study.json'} cannot be read ({said})")):
        read_study(tmp_path)
