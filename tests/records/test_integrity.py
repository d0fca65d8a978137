"""What was changed after it was written is told: records by the hash of their content, stored files by the record's."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from petl_bench.errors import RequestError
from petl_bench.process import file_sha256
from petl_bench.records.predictions import PREDICTIONS_FILE, Predictions
from petl_bench.records.reading import HASH_FIELD
from petl_bench.records.schema import Record
from petl_bench.records.store import RunFolder, locate_records, read_record
from petl_bench.records.study_file import read_study
from petl_bench.reports.report import write_report
from petl_bench.run.compare import compare_runs
from petl_bench.trackers.sync import sync
from reports.generated import record as made
from reports.generated import study

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def stored(tmp_path):
    """The file of one record that was written by the store."""
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.write(made("lora", "mrpc", 0, 0.8125))
    return folder.path / "result.json"


def flip(file: Path, before: str = "0.8125", after: str = "0.9125") -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_a_record_is_written_with_its_hash_and_reads_back(stored):
    content = json.loads(stored.read_text())
    assert re.fullmatch("[0-9a-f]{64}", content[HASH_FIELD])
    assert read_record(stored) == made("lora", "mrpc", 0, 0.8125)


def test_another_layout_of_the_file_is_the_same_content(stored):
    content = json.loads(stored.read_text())
    stored.write_text(json.dumps(dict(reversed(content.items()))))
    assert read_record(stored) == made("lora", "mrpc", 0, 0.8125)


def test_keys_that_json_turns_into_text_do_not_change_the_hash(tmp_path):
    record = made("lora", "mrpc", 0, 0.8125)
    record.config["method"]["pattern"] = {9: 1, 10: 2}
    RunFolder(tmp_path).write(record)
    assert read_record(tmp_path / "result.json").config["method"]["pattern"] == {"9": 1, "10": 2}


def test_a_flipped_digit_of_a_score_is_told_and_left_out(stored, tmp_path, caplog):
    RunFolder(tmp_path / "runs" / "two").write(made("lora", "mrpc", 1, 0.75))
    flip(stored)
    records, unreadable = locate_records([tmp_path / "runs"])
    assert [record.protocol.seed for record in records.values()] == [1]
    assert len(unreadable) == 1
    assert str(stored) in unreadable[0]
    assert "content has changed since it was written" in unreadable[0]
    written = []
    write_report([str(tmp_path / "runs")], "csv", None, written.append)
    assert "0.9125" not in "".join(written)
    assert "91.2" not in "".join(written)
    assert str(stored) in caplog.text


def test_every_command_that_reads_one_record_names_it(stored, tmp_path, caplog):
    from petl_bench.run.predict import Predictor

    flip(stored)
    for command in (lambda: Predictor(stored.parent), lambda: compare_runs(stored, stored)):
        with pytest.raises(RequestError, match=f"{re.escape(str(stored))} cannot be read: its content has changed"):
            command()
    with pytest.raises(RequestError, match="No finished run"):
        list(sync([stored.parent], tracker="tensorboard"))
    with caplog.at_level(logging.WARNING):
        assert RunFolder(stored.parent).finished() is None
    assert f"{stored} cannot be read: its content has changed" in caplog.text
    assert "the run counts as unfinished" in caplog.text


def test_a_flipped_digit_of_a_study_is_told(tmp_path):
    study(["lora"], ["mrpc"], 1).write(tmp_path)
    flip(tmp_path / "study.json", '"seed": 0', '"seed": 1')
    with pytest.raises(RequestError, match=r"study\.json cannot be read \(its content has changed .*delete it"):
        read_study(tmp_path)


def test_a_record_without_a_hash_is_read_as_before(stored):
    content = json.loads(stored.read_text())
    del content[HASH_FIELD]
    stored.write_text(json.dumps(content))
    flip(stored)
    assert 0.9125 in read_record(stored).scores.best.values()


@pytest.mark.parametrize("script", ["migrate_records.py", "drop_times.py"])
def test_scripts_that_rewrite_records_write_a_new_hash_and_spread_no_damage(script, stored):
    def rewrite():
        return subprocess.run(
            [sys.executable, SCRIPTS / script, stored.parent], capture_output=True, text=True, check=False
        )

    content = json.loads(stored.read_text())
    if script == "migrate_records.py":
        # Schema 1 had other names, and no hash.
        content["schema_version"], content["trunk"] = 1, content.pop("frozen")
        del content[HASH_FIELD]
        stored.write_text(json.dumps(content))
    done = rewrite()
    assert "1 records rewritten" in done.stdout, done.stderr
    assert HASH_FIELD in json.loads(stored.read_text())
    assert isinstance(read_record(stored), Record)
    if script == "drop_times.py":
        content = json.loads(stored.read_text()) | {"time": 1}
        stored.write_text(json.dumps(content))
        assert rewrite().returncode != 0
        assert json.loads(stored.read_text()) == content


PREDICTIONS = Predictions(
    np.array([f"{i:016x}" for i in range(50)]), np.arange(50) % 2, np.arange(100, dtype=np.float32).reshape(50, 2)
)


@pytest.fixture
def folder(tmp_path):
    """A run's folder with predictions, an adapter, and a record that knows both."""
    folder = RunFolder(tmp_path / "run")
    folder.write_predictions({"report": PREDICTIONS})
    (folder.path / "adapter").mkdir()
    (folder.path / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    (folder.path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder.path / "adapter" / "README.md").write_text("what PEFT says")
    record = made("lora", "mrpc", 0, 0.8125)
    record.stored_files = folder.stored_files()
    folder.write(record)
    return folder


def test_the_record_knows_the_files_that_are_read_back(folder):
    record = folder.finished()
    assert list(record.stored_files) == [
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "predictions.parquet",
    ]  # fmt: skip
    folder.check_stored(record, "adapter")
    np.testing.assert_array_equal(folder.read_predictions(record).outputs, PREDICTIONS.outputs)


@pytest.mark.parametrize("damage", ["changed", "removed", "added"])
def test_stored_weights_that_are_not_the_runs_are_named(folder, damage):
    file = folder.path / "adapter" / ("added_tokens.json" if damage == "added" else "adapter_config.json")
    if damage == "removed":
        file.unlink()
    else:
        file.write_text('{"r": 9}')
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}: not what the run wrote"):
        folder.check_stored(folder.finished(), "adapter")
    # The predictions are still those of the run.
    assert folder.read_predictions(folder.finished()) is not None


def test_what_is_not_read_back_may_change(folder):
    (folder.path / "adapter" / "README.md").write_text("my notes")
    (folder.path / "adapter" / "._adapter_config.json").write_text("what a file manager left")
    folder.check_stored(folder.finished(), "adapter")


def test_every_flipped_byte_of_the_predictions_is_found(folder):
    record, file = folder.finished(), folder.path / PREDICTIONS_FILE
    whole = file.read_bytes()
    for position in range(0, len(whole), 13):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"predictions\.parquet: not what the run wrote"):
            folder.read_predictions(record)
    file.unlink()
    assert folder.read_predictions(record) is None


def test_records_from_before_do_not_know_their_files(folder):
    record = folder.finished()
    record.stored_files = None
    (folder.path / "adapter" / "adapter_config.json").write_text("{}")
    folder.check_stored(record, "adapter")


def test_a_file_that_is_replaced_within_the_clocks_resolution_is_hashed_again(tmp_path):
    found = set()
    for number in range(200):
        (tmp_path / "file").write_bytes(b"%03d" % number)
        found.add(file_sha256(tmp_path / "file"))
    assert len(found) == 200
