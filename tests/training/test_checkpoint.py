"""An interrupted training continues with the same bits; its checkpoint files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from petl_bench.backbones.load import Backbone
from petl_bench.errors import Interrupted
from petl_bench.methods.registry import all_methods
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.training.checkpoint import Checkpoints
from petl_bench.training.loop import TrainingLoop

PEFT_TYPES = [["method=peft", "method.type=IA3"], ["method=peft", "method.type=ADALORA"]]
METHODS = [[f"method={name}"] for name in all_methods() if name != "peft"] + PEFT_TYPES
# Three updates an epoch, an evaluation every two.
SETTINGS = ["backbone.architecture.num_hidden_layers=2", "task.num_train_examples=45", "task.max_length=16",
            "train.epochs=2", "train.evaluate_every=2", "train.checkpoint_seconds=0"]  # fmt: skip


def kept_files(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for kind in ("adapter", "model")
        for file in sorted((folder / kind).rglob("*"))
    }


def outcome(cfg, record):
    history = [(entry.epoch, entry.step, entry.train_loss, entry.scores) for entry in record.history]
    return history, record.scores, kept_files(identify(cfg).folder)


def interrupt(monkeypatch, after, cfg):
    """Runs until so many updates are done, as a signal would end it."""
    update = TrainingLoop._update

    def interrupted(self, indices):
        if self.state.progress.num_steps == after:
            raise Interrupted(15)
        update(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_update", interrupted)
        with pytest.raises(Interrupted):
            run(cfg)


# Before and after evaluations, the best one between them: each method once, and one after the other where the most is
# kept, of AdaLoRA's ranks.
INTERRUPTED = {"ADALORA": (1, 3, 5)}


@pytest.mark.parametrize("overrides", METHODS, ids=lambda overrides: overrides[-1].partition("=")[2])
def test_every_method_goes_on_with_the_same_bits(overrides, tiny, monkeypatch, tmp_path):
    in_turn = (1, 3, 5)[METHODS.index(overrides) % 3]
    updates = INTERRUPTED.get(overrides[-1].partition("=")[2], (in_turn,))
    undisturbed = tiny(*overrides, *SETTINGS, f"runs_dir={tmp_path / 'undisturbed'}")
    wanted = outcome(undisturbed, run(undisturbed))
    cfg = tiny(*overrides, *SETTINGS)
    for after in updates:
        interrupt(monkeypatch, after, cfg)
        assert identify(cfg).folder.joinpath("result.json").exists()
    record = run(cfg)
    assert record.resumed_at_updates == [*updates]
    assert outcome(cfg, record) == wanted
    assert not identify(cfg).folder.joinpath("checkpoint").exists()


def test_a_bf16_training_and_one_that_stops_early_go_on_too(tiny, monkeypatch, tmp_path):
    overrides = [
        "train.precision=bf16",
        "train.epochs=5",
        "train.early_stopping_patience=2",
        "train.learning_rate=1e-12",
    ]
    undisturbed = tiny(*SETTINGS, *overrides, f"runs_dir={tmp_path / 'undisturbed'}")
    wanted = outcome(undisturbed, run(undisturbed))
    assert len(wanted[0]) == 3
    cfg = tiny(*SETTINGS, *overrides)
    interrupt(monkeypatch, 5, cfg)
    assert outcome(cfg, run(cfg)) == wanted


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tiny, monkeypatch, tmp_path, caplog):
    undisturbed = tiny(*SETTINGS, f"runs_dir={tmp_path / 'undisturbed'}")
    wanted = outcome(undisturbed, run(undisturbed))
    cfg = tiny(*SETTINGS)
    interrupt(monkeypatch, 5, cfg)
    before, newest = sorted(identify(cfg).folder.glob("checkpoint/*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    record = run(cfg)
    assert record.resumed_at_updates == [4]
    assert str(newest) in caplog.text
    assert str(before) not in caplog.text
    assert outcome(cfg, record) == wanted


def test_changed_bytes_are_seen_and_nothing_whole_means_from_the_start(tiny, monkeypatch):
    cfg = tiny(*SETTINGS)
    interrupt(monkeypatch, 3, cfg)
    for file in identify(cfg).folder.glob("checkpoint/*"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert run(cfg).resumed_at_updates == []


def test_a_flipped_byte_anywhere_is_seen(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, 0, {"torch": "1"})
    checkpoints.write(3, {"step": 3, "rate": 0.5, "generator": ("Mersenne", 17), "weights": torch.arange(4.0)})
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    assert checkpoints.read()["step"] == 3
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert checkpoints.read() is None, position
    assert caplog.messages[-1] == f"the checkpoint {file} is ignored: its content has changed since it was written"
    for damaged in (whole[:-1], whole + b" ", b""):
        file.write_bytes(damaged)
        assert checkpoints.read() is None
    file.write_bytes(whole)
    assert checkpoints.read()["step"] == 3


def test_force_starts_from_the_start(tiny, monkeypatch):
    cfg = tiny(*SETTINGS)
    interrupt(monkeypatch, 3, cfg)
    assert run(tiny(*SETTINGS, "force=true")).resumed_at_updates == []


def test_the_times_of_two_cache_modes_are_not_added_up(tiny, monkeypatch):
    flat = ["method=flat", *SETTINGS]
    interrupt(monkeypatch, 3, tiny(*flat, "train.cache=memory"))
    record = run(tiny(*flat, "train.cache=off"))
    assert (record.frozen.cache, record.resumed_at_updates) == ("off", [])


def test_a_training_does_not_go_on_from_another_backbone(tiny, monkeypatch, caplog):
    # Local files are part of the run key; those of the hub or of a package are not.
    monkeypatch.setattr(Backbone, "file_hashes", lambda _: {"model.safetensors": "before"})
    interrupt(monkeypatch, 3, tiny(*SETTINGS))
    monkeypatch.setattr(Backbone, "file_hashes", lambda _: {"model.safetensors": "after"})
    assert run(tiny(*SETTINGS)).resumed_at_updates == []
    assert "is ignored: the backbone's files, versions," in caplog.text


def test_how_often_checkpoints_are_written_changes_no_key(tiny):
    assert identify(tiny("train.checkpoint_seconds=5")).key == identify(tiny("train.checkpoint_seconds=null")).key


def test_a_full_disk_costs_the_checkpoint_alone(tiny, monkeypatch, caplog):
    def full(*_arguments, **_settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("petl_bench.training.checkpoint.save_file", full)
    assert run(tiny(*SETTINGS)).status == "finished"
    assert "no checkpoint could be written" in caplog.text


STATE = {
    "numbers": [1, 2.5, None, True, "text"],
    1: ("a tuple", {"tensor": torch.arange(6).view(2, 3)}),
    "view": torch.arange(10.0)[2:4],
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": {},
    "nan": float("nan"),
    "scalar": torch.tensor(3.0),
}


class TestCheckpoints:
    def test_what_is_written_is_read(self, tmp_path):
        checkpoints = Checkpoints(tmp_path / "checkpoint", 0, {"torch": "1"})
        assert checkpoints.read() is None
        assert checkpoints.due
        checkpoints.write(3, STATE)
        found = checkpoints.read()
        assert list(found) == list(STATE)
        assert found["numbers"] == STATE["numbers"]
        assert found[1][0] == "a tuple"
        for one, other in ((found[1][1]["tensor"], STATE[1][1]["tensor"]), *(
            (found[name], STATE[name]) for name in ("view", "half", "scalar")
        )):  # fmt: skip
            assert one.dtype == other.dtype
            assert torch.equal(one, other)

    def test_two_are_kept_and_the_newest_read(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, 0, {})
        for step in (9, 10, 100):
            checkpoints.write(step, {"step": step})
        assert len(list(tmp_path.iterdir())) == 2
        assert checkpoints.read() == {"step": 100}

    def test_other_versions_are_not_read(self, tmp_path):
        Checkpoints(tmp_path, 0, {"torch": "1"}).write(1, {})
        assert Checkpoints(tmp_path, 0, {"torch": "2"}).read() is None

    def test_no_checkpoint_where_none_is_wanted(self, tmp_path):
        assert not Checkpoints(tmp_path, None, {}).due
        assert not Checkpoints(tmp_path, 1000, {}).due

    def test_what_json_does_not_know_is_refused(self, tmp_path):
        with pytest.raises(TypeError, match="object"):
            Checkpoints(tmp_path, 0, {}).write(1, {"what": object()})
        assert not list(tmp_path.glob("step-*"))


def test_an_interrupted_record_says_so_until_the_run_is_done(tiny, monkeypatch):
    cfg = tiny(*SETTINGS)
    interrupt(monkeypatch, 2, cfg)
    file = identify(cfg).folder / "result.json"
    assert json.loads(file.read_text())["status"] == "interrupted"
    run(cfg)
    assert json.loads(file.read_text())["status"] == "finished"
    shutil.rmtree(identify(cfg).folder)
