"""What a study says before it runs: how long what is left will take, by what was measured."""

from __future__ import annotations

import pytest

from petl_bench.cli import main
from petl_bench.records.store import RunFolder
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies import study as study_module
from petl_bench.studies.definition import parse_request
from petl_bench.studies.progress import expected_seconds
from petl_bench.studies.study import prepare
from reports.made_records import made_record


class Folder:
    """Records by run key."""

    def __init__(self, *records):
        self._records = {record.run_key: record for record in records}

    def record(self, run):
        return self._records.get(run.key)


def planned(method, task, seed, key=""):
    return PlannedRun(method, task, seed, key or f"{method}-{task}-{seed}", "folder", [])


def timed(key, seconds):
    one = made_record("lora", "cola", 0)
    one.run_key, one.time.train_seconds, one.time.eval_seconds = key, seconds - 5.0, 5.0
    return one


def test_the_time_of_a_run_is_that_of_like_runs():
    runs = [planned("lora", "cola", 0), planned("lora", "cola", 1), planned("full", "cola", 0)]
    folder = Folder(timed("lora-cola-0", 100), timed("lora-cola-1", 140), timed("full-cola-0", 300))
    left = [planned("lora", "cola", 2), planned("head", "cola", 0), planned("head", "rte", 0)]
    # The mean of LoRA on the task; of all on the task; of all.
    assert expected_seconds(left, runs, folder) == pytest.approx([120, 180, 180])
    assert expected_seconds(left, runs, Folder()) is None
    assert expected_seconds([], runs, folder) == []


def test_a_dry_run_says_how_long(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(study_module, "plan_costs", lambda _study: [])
    file = tmp_path / "mine.yaml"
    file.write_text("methods: {lora: []}\ntasks: {demo: []}\nseeds: [0, 1, 2]\nsettings: [backbone=tiny_bert]\n")
    words = ["study", str(file), f"runs_dir={tmp_path / 'runs'}", "--dry-run"]
    assert main(words) == 0
    assert "time left: unknown, as no run here has been timed yet" in capsys.readouterr().out
    run = prepare(str(file), parse_request(words[2:3])).runs[0]
    RunFolder(tmp_path / "runs" / run.folder).write(timed(run.key, 150))
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "time left: 5 min for all, one run after the other" in out
    assert " ".join(out.splitlines()[-2].split()) == "lora on demo 2 1 - 5 min - - - -"


def test_a_folder_of_rows_that_is_not_there_is_told_once_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("methods: {lora: [], head: []}\ntasks: {rte: [], mrpc: []}\nseeds: [0, 1]\n")
    assert main(["study", "mine.yaml", "backbone=tiny_bert", "data_root=nowhere"]) == 2
    assert capsys.readouterr().err == "petl-bench: data_root=nowhere: there is no such folder. Give one that exists.\n"
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]
