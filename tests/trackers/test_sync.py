"""Finished records are mirrored afterwards, each once: read back from what was written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from petl_bench.cli import main
from petl_bench.config import load_config
from petl_bench.records.predictions import PREDICTIONS_FILE
from petl_bench.records.store import RECORD_FILE, read_record, write_record
from petl_bench.records.study_file import StudyFile
from petl_bench.run.identity import identify
from petl_bench.run.run import run
from petl_bench.trackers.sync import sync
from petl_bench.trackers.tracker import MARKER_FILE, read_mirrors, record_hash
from trackers.wandb_files import read_offline

_SETTINGS = ["task=smoke", "backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=2", "train.batch_size=16"]
_SETTINGS += ["measure.ledger=false", "measure.inference=false"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run that no tracker saw."""
    cfg = load_config([*_SETTINGS, f"runs_dir={tmp_path_factory.mktemp('made')}"])
    run(cfg)
    return identify(cfg).folder


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    """Its folder's copy, and W&B offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(made, tmp_path / "runs" / made.name)
    return tmp_path / "runs"


def states(folder, **settings):
    return [done.state for done in sync([folder], **settings)]


def files(folder):
    return sorted(folder.glob("*/wandb/offline-run-*/*.wandb"))


def change(folder):
    """What a repetition with --force leaves: the same run with other numbers."""
    (file,) = folder.glob(f"*/{RECORD_FILE}")
    content = json.loads(file.read_text())
    content["scores"]["best"]["accuracy"] = content["history"][1]["scores"]["accuracy"] = 0.125
    write_record(file, content)


def spawn(script, *words):
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], stdout=subprocess.PIPE, text=True)


def test_a_record_is_mirrored_once_and_anew_when_it_changed(runs, capsys):
    StudyFile("glue-study", "", [], [], [], []).write(runs)
    (folder,) = (file.parent for file in runs.glob(f"*/{RECORD_FILE}"))
    assert main(["sync", str(runs), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "pending"
    assert {path.name for path in folder.iterdir()} == {"adapter", "log.txt", PREDICTIONS_FILE, RECORD_FILE}

    assert states(runs) == ["synced"]
    (file,) = files(runs)
    record, mirror = read_record(folder / RECORD_FILE), read_offline(file)
    start = mirror.start
    assert (start.run_id, start.run_group, start.job_type) == (record.run_key, "lora-smoke-tiny_bert", "lora")
    assert (start.display_name, start.project, list(start.tags)) == (folder.name, "petl_bench", ["glue-study", "smoke"])
    config = {name: value for name, value in mirror.config.items() if name != "_wandb"}
    assert config == json.loads(json.dumps(record.config)) | {"study": "glue-study"}
    assert [row["step"] for row in mirror.points] == [entry.step for entry in record.history] == [4, 8]
    assert [row["train/loss"] for row in mirror.points] == [entry.train_loss for entry in record.history]
    assert mirror.axes == {"step"}
    assert mirror.summary["score"] == record.scores.best["accuracy"]
    (marked,) = read_mirrors(folder)
    assert (marked.tracker, marked.project, marked.run_id, marked.mode) == (
        *("wandb", "petl_bench", record.run_key),
        "offline",
    )

    assert main(["sync", str(runs)]) == 0
    assert "mirrored already" in capsys.readouterr().out
    assert files(runs) == [file]

    change(runs)
    assert states(runs) == ["synced"]
    (file,) = files(runs)
    assert read_offline(file).summary["score"] == 0.125
    assert states(runs) == ["already"]


def test_each_project_has_its_own_mirror(runs, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_PROJECT", "one")
    assert states(runs) == ["synced"]
    assert states(runs, project="other") == ["synced"]
    assert sorted(read_offline(file).start.project for file in files(runs)) == ["one", "other"]
    change(runs)
    assert states(runs, project="other") == ["synced"]
    assert {read_offline(file).start.project: read_offline(file).summary["score"] == 0.125 for file in files(runs)} == {
        "one": False,
        "other": True,
    }
    assert states(runs, project="one", dry_run=True) == ["pending"]
    assert main(["sync", str(runs), "--project", "other"]) == 0
    told = capsys.readouterr().out.split("wandb sync ")[1].strip(" )\n")
    assert told in [str(file.parent.resolve()) for file in files(runs)]


def test_killed_before_it_was_marked_it_is_mirrored_again_and_once(runs):
    script = """
import os, sys
import petl_bench.trackers.tracker as tracker
from petl_bench.trackers.sync import sync
tracker.mark = lambda *_: os._exit(9)
list(sync(sys.argv[1:]))
"""
    killed = spawn(script, runs)
    assert killed.wait(120) == 9
    (half,) = files(runs)
    assert not list(runs.glob(f"*/{MARKER_FILE}"))
    (half.parent / "of-the-killed").touch()

    assert states(runs) == ["synced"]
    (file,) = files(runs)
    assert not (file.parent / "of-the-killed").exists()
    assert [row["step"] for row in read_offline(file).points] == [4, 8]
    assert states(runs) == ["already"]


def test_two_processes_mirror_a_record_once(runs):
    script = "import sys\nfrom petl_bench.trackers.sync import sync\nprint(*(one.state for one in sync(sys.argv[1:])))"
    both = [spawn(script, runs), spawn(script, runs)]
    said = [process.communicate(timeout=240)[0].strip() for process in both]
    assert sorted(said) == ["already", "synced"]
    assert len(files(runs)) == 1


def test_what_was_tracked_live_is_not_mirrored_again(tiny, runs):
    cfg = tiny("tracker=wandb", f"runs_dir={runs / 'live'}")
    live = identify(cfg).folder
    run(cfg)
    (marked,) = read_mirrors(live)
    assert marked.record == record_hash(json.loads((live / RECORD_FILE).read_text()))
    assert states(runs / "live") == ["already"]
    # A copy of the folder is the same run.
    shutil.copytree(live, runs / "live" / "z-copy")
    assert states(runs / "live") == ["already", "copy"]


def test_a_run_that_was_not_finished_is_not_marked(runs, tmp_path):
    (file,) = runs.glob(f"*/{RECORD_FILE}")
    content = json.loads(file.read_text())
    write_record(file, content | {"status": "diverged"})
    assert main(["sync", str(runs)]) == 2
    assert not files(runs)


def test_disabled_wandb_is_refused(runs, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["sync", str(runs)]) == 2
    assert "WANDB_MODE=offline" in capsys.readouterr().err
    assert not list(runs.glob(f"*/{MARKER_FILE}"))


def test_no_login_names_the_way_out(runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["sync", str(runs)]) == 1
    assert "wandb login" in capsys.readouterr().err
    assert not list(runs.glob(f"*/{MARKER_FILE}"))


def test_tensorboard_is_written_once_and_reads_back(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (file.parent for file in runs.glob(f"*/{RECORD_FILE}"))
    assert states(runs, tracker="tensorboard") == ["synced"]
    (events,) = (folder / "tensorboard").iterdir()
    written = events.stat().st_mtime_ns
    assert states(runs, tracker="tensorboard") == ["already"]
    assert events.stat().st_mtime_ns == written
    # The other tracker's turn is its own.
    assert states(runs, dry_run=True) == ["pending"]

    change(runs)
    assert states(runs, tracker="tensorboard") == ["synced"]
    (events,) = (folder / "tensorboard").iterdir()
    read = EventAccumulator(str(events))
    read.Reload()
    record = read_record(folder / RECORD_FILE)
    assert [point.step for point in read.Scalars("validation/accuracy")] == [4, 8]
    assert read.Scalars("validation/accuracy")[1].value == 0.125
    assert read.Scalars("record/score")[0].value == 0.125
    losses = [point.value for point in read.Scalars("train/loss")]
    assert losses == pytest.approx([entry.train_loss for entry in record.history])
    assert read.Scalars("record/params/trainable")[0].value == record.params.trainable
