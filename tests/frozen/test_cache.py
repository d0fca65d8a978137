"""The cache of features: shared between runs, verified, within its budget; no result depends on it."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
import torch
from filelock import FileLock

from forked import FORK_SERVER
from petl_bench.frozen import cache as feature_cache
from petl_bench.frozen.cache import FeatureFile, prune, remove_abandoned
from petl_bench.process import cache_dir
from petl_bench.records.reading import with_hash
from petl_bench.run.run import run

pytestmark = pytest.mark.usefixtures("empty_cache")

FROZEN = {
    "head": ["method=head"],
    "flat": ["method=flat"],
    "lst": ["method=lst"],
    "top": ["method=lora", "layers=top", "layers.k=1"],
    "full": ["method=full", "layers=window", "layers.bottom=2", "layers.top=2"],
}


# What is shown here does not depend on how long a row is.
SHORT = "task.max_length=12"
# Where a GPU is there, features are kept on it, whatever memory and disk allow.
ON_CPU = "train.device=cpu"


def entries():
    return sorted((cache_dir() / "frozen").glob("*.states"))


@pytest.mark.parametrize("name", FROZEN)
def test_scores_and_weights_are_the_same_to_the_bit(name, tiny, tmp_path, outcome):
    found = {}
    for number, cache in enumerate(("off", "memory", "memory", "disk", "disk")):
        cfg = tiny(*FROZEN[name], SHORT, f"train.cache={cache}", "train.epochs=2", f"runs_dir={tmp_path}/runs{number}")
        if number == 3:
            feature_cache._memory_entries.clear()
        found[number] = outcome(cfg)
    assert [found[number][0].frozen.reused for number in range(5)] == [False, False, True, False, True]
    assert len({found[number][0].run_key for number in range(5)}) == 1, "where states are kept is no part of a run"
    for number in range(1, 5):
        assert found[number][1] == found[0][1]
        for tensor, value in found[0][2].items():
            assert torch.equal(value, found[number][2][tensor]), tensor
    # Training must have done something, or all this would prove nothing.
    losses = [loss for loss, _ in found[0][1]]
    assert losses[0] != losses[1]


def test_seeds_rates_and_other_methods_share_what_is_cached(tiny):
    disk = [SHORT, "train.cache=disk", "train.epochs=2"]
    first = run(tiny("method=flat", *disk))
    assert not first.frozen.reused
    assert first.frozen.states == first.frozen.layers + 1
    written = entries()
    for other in (["method=flat", "train.seed=1"], ["method=flat", "train.learning_rate=1e-2"], ["method=lst"],
                  ["method=head"], ["layers=top", "layers.k=1"]):  # fmt: skip
        # A random backbone's weights follow the seed: with them, the states.
        expected = "train.seed=1" not in other
        assert run(tiny(*other, *disk)).frozen.reused is expected, other
    assert set(written) < set(entries())


def test_other_rows_weights_and_precision_are_not_mistaken(tiny):
    disk = [SHORT, "train.cache=disk", "train.epochs=2", "method=head"]
    run(tiny(*disk))
    for other in ("task.num_train_examples=63", "train.seed=3", "train.precision=bf16", "task.max_length=8"):
        assert not run(tiny(*disk, other)).frozen.reused, other


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_every_run_reports_the_seconds_of_the_original_computation(place, tiny, tmp_path, outcome):
    options = ["method=flat", f"train.cache={place}", "train.epochs=2"]
    first, again = (outcome(tiny(*options, f"runs_dir={tmp_path / name}"))[0] for name in ("first", "again"))
    assert (first.frozen.reused, again.frozen.reused) == (False, True)
    assert first.time.features_seconds > 0
    assert again.time.features_seconds == first.time.features_seconds
    assert first.time.cache_seconds > 0
    assert again.time.cache_seconds > 0
    # What reads one of these layers alone comes from the same computation.
    head = run(tiny("method=head", *options[1:]))
    assert head.frozen.reused
    assert head.time.features_seconds == first.time.features_seconds


def test_without_a_cache_no_seconds_are_reported(tiny):
    record = run(tiny("method=flat", "train.cache=off", "train.epochs=2"))
    assert record.frozen.cache == "off"
    assert record.time.features_seconds is record.time.cache_seconds is None


def test_a_finished_run_does_not_answer_for_the_times_of_another_mode(tiny, caplog):
    caplog.set_level("INFO", "petl_bench")
    flat = ["method=flat", "train.epochs=2", ON_CPU]
    cached = run(tiny(*flat))
    assert cached.frozen.cache == "memory"
    assert run(tiny(*flat, "train.cache=memory")) == cached
    uncached = run(tiny(*flat, "train.cache=off"))
    assert (uncached.frozen.cache, uncached.run_key, uncached.scores) == ("off", cached.run_key, cached.scores)
    assert "running again: the finished run was timed with train.cache=memory" in caplog.text
    # Who does not ask for a mode takes the record that is there.
    assert run(tiny(*flat)) == run(tiny(*flat, "train.cache=off")) == uncached


def test_a_run_without_frozen_layers_answers_for_every_mode(tiny):
    first = run(tiny("method=full"))
    assert first.frozen is None
    assert run(tiny("method=full", "train.cache=off")) == first


def test_entries_of_older_versions_have_no_seconds(tiny, tmp_path):
    options = ["method=head", "train.cache=disk", "train.epochs=2"]
    run(tiny(*options))
    descriptions = [file.with_suffix(".json") for file in entries()]
    for file in descriptions[:1]:
        content = json.loads(file.read_text())
        assert content.pop("seconds") > 0
        del content["entry"], content["content_sha256"]
        file.write_text(json.dumps(content))
    record = run(tiny(*options, f"runs_dir={tmp_path / 'again'}"))
    assert record.frozen.reused
    assert record.time.features_seconds is None, "the sum is not known where a part is missing"


@pytest.mark.parametrize("damage", ["truncate", "flip", "description", "lost"])
def test_damaged_entries_are_computed_again(damage, tiny, tmp_path, caplog, outcome):
    options = [SHORT, "method=head", "train.cache=disk", "train.epochs=2"]
    cfg = tiny(*options)
    _, losses, _ = outcome(cfg)
    for file in entries():
        content = bytearray(file.read_bytes())
        description = file.with_suffix(".json")
        if damage == "truncate":
            file.write_bytes(content[:-4])
        elif damage == "flip":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        elif damage == "description":
            description.write_text("{")
        else:
            description.unlink()
    again = tiny(*options, f"runs_dir={tmp_path / 'again'}")
    record, losses_again, _ = outcome(again)
    assert not record.frozen.reused
    assert losses == losses_again
    assert ("are damaged and computed again" in caplog.text) == (damage != "lost")
    assert run(tiny(*options, f"runs_dir={tmp_path / 'third'}")).frozen.reused


def test_auto_keeps_small_states_in_memory_and_large_ones_on_disk(tiny):
    frozen = ["method=flat", "train.epochs=2", ON_CPU]
    assert run(tiny(*frozen)).frozen.cache == "memory"
    assert run(tiny(*frozen, "train.cache_memory=1KiB", "train.seed=1")).frozen.cache == "disk"
    nowhere = ["train.cache_memory=1KiB", "train.cache_disk=1KiB"]
    assert run(tiny(*frozen, *nowhere, "train.seed=2")).frozen.cache == "off"
    # Rows that are seen once are not worth it.
    assert run(tiny("method=flat", "train.seed=3", ON_CPU)).frozen.cache == "off"
    # Unless other runs see them, too.
    shared = ["method=flat", "train.cache=shared", ON_CPU, SHORT]
    first, second = (run(tiny(*shared, f"train.learning_rate={rate}")) for rate in (1e-3, 2e-3))
    assert (first.frozen.cache, first.frozen.reused) == ("memory", False)
    assert (second.frozen.cache, second.frozen.reused) == ("memory", True)


def test_auto_counts_what_would_be_computed_twice(tiny):
    once = ["method=flat", "train.batch_size=16"]
    # A last batch that is not full makes no second epoch.
    assert run(tiny(*once, "task.num_train_examples=65")).frozen.cache == "off"
    often = ["train.max_steps=8", "train.batch_size=4", "train.evaluate_every=1", "train.seed=1", ON_CPU]
    assert run(tiny("method=flat", *often)).frozen.cache == "memory"


def test_gradient_checkpointing_changes_neither_frozen_layers_nor_losses(tiny):
    top = ["layers=top", "layers.k=1", "train.epochs=2"]
    plain, checkpointed = (run(tiny(*top, f"train.gradient_checkpointing={value}")) for value in ("false", "true"))
    assert checkpointed.frozen.layers == plain.frozen.layers == 1
    for first, second in zip(plain.history, checkpointed.history, strict=True):
        assert first.train_loss == pytest.approx(second.train_loss, rel=1e-5)


def test_what_a_method_does_to_frozen_layers_is_part_of_the_key(tiny):
    from petl_bench.backbones.load import open_backbone
    from petl_bench.frozen.cache import _digests
    from petl_bench.frozen.split import FrozenLayers, SplitPoint
    from petl_bench.model import build_adapted

    cfg = tiny("method=head", "backbone.architecture.num_hidden_layers=4")
    backbone = open_backbone(cfg.backbone, cfg.layers)
    model, _ = build_adapted(cfg, backbone, ["a", "b"], 1)
    frozen = FrozenLayers(model, backbone.anatomy, SplitPoint(4, (4,), in_tuples=False), torch.no_grad)
    before = _digests(frozen, torch.device("cpu"), "fp32")
    assert _digests(frozen, torch.device("cpu"), "fp32") == before
    frozen.layers[2].register_forward_hook(lambda _module, _args, output: output * 2)
    after = _digests(frozen, torch.device("cpu"), "fp32")
    assert [after[layer] == before[layer] for layer in range(5)] == [True, True, True, False, False]


def test_splits_of_one_run_do_not_push_each_other_out(tiny, tmp_path):
    options = ["method=flat", "train.cache=disk", "train.epochs=2", "train.cache_disk=1KiB"]
    assert [run(tiny(*options, f"runs_dir={tmp_path / str(n)}")).frozen.reused for n in range(2)] == [False, True]


def test_what_killed_processes_left_is_cleared_away(tmp_path):
    abandoned, written = tmp_path / "a-first.0.partial", tmp_path / "b.1.partial"
    for file in (abandoned, written):
        file.write_bytes(b"0" * 64)
    with FileLock(tmp_path / "b.lock"):
        remove_abandoned(tmp_path)
        assert list(tmp_path.glob("*.partial")) == [written]
    remove_abandoned(tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_the_next_run_removes_what_a_killed_one_had_begun(tiny):
    options = [SHORT, "method=head", "train.cache=disk", "train.epochs=2"]
    folder = cache_dir() / "frozen"
    folder.mkdir(parents=True)
    for name in (f"{'0' * 64}.ab.partial", f"{'1' * 64}-first.cd.partial"):
        (folder / name).write_bytes(b"half")
    run(tiny(*options))
    assert not list(folder.glob("*.partial"))


def test_states_without_a_description_are_cleared_away_once_no_writer_can_come_back(tmp_path):
    old, new = tmp_path / "c.states", tmp_path / "d.states"
    for file in (old, new):
        file.write_bytes(b"0" * 64)
    os.utime(old, (time.time() - 90,) * 2)
    prune(tmp_path, 2**20, in_use=())
    assert list(tmp_path.iterdir()) == [new]


@pytest.mark.parametrize("change", ["seconds", "key"])
def test_every_part_of_a_description_is_checked(tmp_path, change, caplog):
    entry = FeatureFile(tmp_path, "key")
    entry.finish(entry.create((4, 8), torch.float32).fill_(1.0), 0.5)
    if change == "seconds":
        entry.description.write_text(entry.description.read_text().replace("0.5", "0.7"))
    else:
        # The files of one entry under the name of another.
        other = FeatureFile(tmp_path, "other")
        entry.data.rename(other.data)
        entry.description.rename(other.description)
        entry = other
    assert entry.read() is None
    assert "are damaged and computed again" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("shape", [8, 4]), ("dtype", "int32")])
def test_a_description_of_other_states_is_not_believed(tmp_path, name, value):
    entry = FeatureFile(tmp_path, "key")
    entry.finish(entry.create((4, 8), torch.float32).fill_(1.0), 0.5)
    # The hash of the description is right, so it is that of the states that tells.
    entry.description.write_text(json.dumps(with_hash(json.loads(entry.description.read_text()) | {name: value})))
    assert entry.read() is None


def test_memory_keeps_to_its_budget(tiny):
    options = ["method=flat", "train.epochs=2", "train.cache_memory=8MiB", ON_CPU]
    options.append("backbone.architecture.num_hidden_layers=4")
    for seed in range(4):
        record = run(tiny(*options, f"train.seed={seed}"))
        assert record.frozen.cache == "memory"
        assert sum(states.tensor.nbytes for states in feature_cache._memory_entries.values()) <= 2**23
    assert record.frozen.bytes > 2**21, "four runs must be too much for the budget"


def test_the_entries_used_longest_ago_make_room(tmp_path):
    keys = ["a", "b", "c"]
    for age, key in enumerate(keys):
        entry = FeatureFile(tmp_path, key)
        tensor = entry.create((4, 8), torch.float32)
        tensor.fill_(age)
        entry.finish(tensor, 0.5)
        os.utime(entry.description, (age, age))
    prune(tmp_path, 2 * 4 * 8 * 4, in_use={"a"})
    assert [FeatureFile(tmp_path, key).read() is not None for key in keys] == [True, False, True]
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_written_costs_time_not_the_run(tiny, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cfg = tiny("method=head", "train.cache=disk", "train.epochs=2")
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "file"))
    record = run(cfg)
    assert record.status == "finished"
    assert record.frozen.cache == "off"
    assert "computed with every batch" in caplog.text
    assert run(cfg) == record, "the folder still cannot be written: another attempt would end alike"


def _run_in_process(overrides, cache, queue):
    from petl_bench.config import load_config

    os.environ["PETL_BENCH_CACHE"] = cache
    record = run(load_config(overrides))
    losses = [entry.train_loss for entry in record.history]
    queue.put((record.frozen.reused, losses, record.time.features_seconds))


def test_processes_that_start_together_compute_once_and_agree(tmp_path):
    overrides = ["task=smoke", "backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=2", "method=flat",
                 "train.cache=disk", "measure.ledger=false", "measure.inference=false"]  # fmt: skip
    queue = FORK_SERVER.Queue()
    processes = [
        FORK_SERVER.Process(
            target=_run_in_process,
            args=([*overrides, f"runs_dir={tmp_path / str(number)}"], str(tmp_path / "cache"), queue),
        )
        for number in range(2)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(reused for reused, *_ in results) == [False, True]
    assert results[0][1] == results[1][1]
    assert results[0][2] == results[1][2] > 0, "who came second reports what the first one's computation took"
    assert entries()
    for file in entries():
        assert json.loads(file.with_suffix(".json").read_text())["crc32"] is not None


def test_bf16_states_survive_the_disk(tmp_path):
    entry = FeatureFile(tmp_path, "key")
    tensor = entry.create((3, 5), torch.bfloat16)
    tensor.copy_(torch.from_numpy(np.arange(15, dtype=np.float32).reshape(3, 5)))
    entry.finish(tensor, 0.5)
    found = entry.read()
    assert found.tensor.dtype == torch.bfloat16
    assert torch.equal(found.tensor, tensor)
    assert found.seconds == 0.5
