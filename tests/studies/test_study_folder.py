"""The folder of a study: which runs have ended, what is set aside, locks, and learning rates chosen from records."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest

from petl_bench.errors import RequestError
from petl_bench.records.schema import FrozenFeatures, HistoryEntry, Record, RunProtocol
from petl_bench.records.study_file import PlannedCosts
from petl_bench.studies.definition import parse_request
from petl_bench.studies.expand import expand
from petl_bench.studies.folder import StudyFolder, choose_settings, is_ready
from petl_bench.studies.study import keep, keep_costs, prepare
from studies.small_study import SMALL


def test_costs_stay_with_the_runs_that_they_were_counted_for(tmp_path):
    file = tmp_path / "mine.yaml"

    def costs(r):
        file.write_text(
            f"methods: {{lora: [method.r={r}], head: [method=head]}}\ntasks: {{demo: []}}\n"
            "settings: [backbone=tiny_bert]\n"
        )
        return prepare(str(file), parse_request([f"runs_dir={tmp_path / 'runs'}"]))

    study = costs(2)
    keep_costs(study, [PlannedCosts("lora", "demo", 1024), PlannedCosts("head", "demo", 0)])
    keep_costs(study, [PlannedCosts("lora", "demo", 1025)])
    assert [cost.trainable_method for cost in costs(2).file.costs] == [0, 1025]
    assert [cost.method for cost in costs(32).file.costs] == ["head"]


def test_a_record_with_times_of_another_cache_mode_does_not_end_a_run(tmp_path):
    for overrides, status in (([], "finished"), (["train.cache=memory"], "finished"), (["train.cache=off"], "waiting")):
        file, _ = expand("small", SMALL, overrides, tmp_path)
        folder, run = StudyFolder(tmp_path), file.runs[0]
        folder.run_folder(run).write(Record(run.key, {}, frozen=FrozenFeatures(3, 1, False, "memory", 100, False)))
        assert (folder.status(run), folder.ended(run)) == (status, status == "finished"), overrides


def test_leftovers_of_killed_processes_are_taken_away(tmp_path):
    file, _ = expand("small", SMALL, [], tmp_path)
    folder, run = StudyFolder(tmp_path), file.runs[0]
    folder.run_folder(run).write(Record(run.key, {}))
    (tmp_path / run.folder / "adapter.99.partial").mkdir()
    (tmp_path / run.folder / "checkpoint").mkdir()
    assert folder.run_folder(run).has_leftovers
    folder.tidy(run)
    assert [path.name for path in (tmp_path / run.folder).iterdir()] == ["result.json"]


def test_files_that_killed_processes_had_begun_are_taken_away_and_those_of_others_are_not(tmp_path):
    folder = StudyFolder(tmp_path)
    folder.private.mkdir()
    # No process has this number, and one has been gone for some time.
    gone = 2**22 + 1
    files = {
        "of a killed process": folder.private / f"a.holder.{gone}.partial",
        "in the study's folder": tmp_path / f"study.json.{gone}.partial",
        "perhaps of another machine": folder.private / f"b.holder.{gone}.partial",
        "of this process": folder.private / f"c.holder.{os.getpid()}.partial",
        "of something else": tmp_path / "notes.partial",
    }
    for name, file in files.items():
        file.write_text("{")
        if name != "perhaps of another machine":
            os.utime(file, (1, 1))
    folder.remove_abandoned()
    assert [name for name, file in files.items() if file.exists()] == [
        "perhaps of another machine",
        "of this process",
        "of something else",
    ]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "mine.yaml").write_text("methods: {lora: []}\ntasks: {demo: []}\nsettings: [backbone=tiny_bert]\n")
    study = prepare(str(tmp_path / "mine.yaml"), parse_request([f"runs_dir={tmp_path / 'file' / 'inside'}"]))
    with pytest.raises(RequestError, match=r"runs_dir=.*give another folder"):
        keep(study)


class TestRates:
    STUDY = dataclasses.replace(
        SMALL,
        methods={"lora": []},
        tasks={"demo": []},
        cells=[],
        seeds=[0, 1, 2],
        learning_rates={"lora": [1e-4, 1e-3]},
        rate_seeds=[0, 1],
    )

    def scored(self, folder, run, score, *, higher_is_better=True):
        protocol = RunProtocol(
            "demo",
            "accuracy",
            higher_is_better,
            "validation",
            "validation",
            "best",
            1,
            1,
            8,
            run.seed,
            "fp32",
            None,
            "shuffled",
        )
        history = [HistoryEntry(1.0, 1, 0.5, {"accuracy": value}, 0.1) for value in (score, score - 0.3)]
        folder.run_folder(run).write(Record(run.key, {}, protocol=protocol, history=history))

    def test_trials_come_first_and_the_best_rate_takes_the_rest(self, tmp_path):
        file, _ = expand("small", self.STUDY, [], tmp_path)
        folder = StudyFolder(tmp_path)
        assert len(file.runs) == 6
        trials = [run for run in file.runs if run.is_trial]
        assert [run for run in file.runs if is_ready(run)] == trials
        assert len(trials) == 4
        for run in trials[:-1]:
            self.scored(folder, run, {1e-4: 0.6, 1e-3: 0.7}[run.learning_rate])
        choose_settings(file, folder)
        assert all(run.chosen is None for run in file.runs)
        # The mean of 0.7 and 0.4 loses to 0.6.
        self.scored(folder, trials[-1], 0.4)
        choose_settings(file, folder)
        assert {run.learning_rate: run.chosen for run in file.runs} == {1e-4: True, 1e-3: False}
        assert [run.seed for run in file.runs if is_ready(run) and not folder.ended(run)] == [2]

    def test_a_trial_that_is_made_again_opens_the_choice(self, tmp_path):
        file, _ = expand("small", self.STUDY, [], tmp_path)
        folder = StudyFolder(tmp_path)
        trials = [run for run in file.runs if run.is_trial]
        for run in trials:
            self.scored(folder, run, run.learning_rate * 100)
        folder.run_folder(trials[0]).write(Record(trials[0].key, {}))
        (tmp_path / trials[0].folder / "result.json").unlink()
        folder.run_folder(trials[0]).write(Record(trials[0].key, {}, status="out_of_memory", error="too large"))
        choose_settings(file, folder)
        assert {run.learning_rate for run in file.runs if run.chosen} == {1e-3}
        folder.set_aside(trials[0])
        choose_settings(file, folder)
        assert all(run.chosen is None for run in file.runs)
        assert [run for run in file.runs if is_ready(run) and not folder.ended(run)] == [trials[0]]

    def test_a_rate_that_failed_is_left_out(self, tmp_path):
        file, _ = expand("small", self.STUDY, [], tmp_path)
        folder = StudyFolder(tmp_path)
        for run in (run for run in file.runs if run.is_trial):
            if run.learning_rate == 1e-3 and run.seed == 1:
                folder.run_folder(run).write(Record(run.key, {}, status="diverged", error="no"))
            else:
                self.scored(folder, run, run.learning_rate * 100)
        choose_settings(file, folder)
        assert {run.learning_rate for run in file.runs if run.chosen} == {1e-4}

    def test_lower_is_better_where_the_metric_says_so(self, tmp_path):
        file, _ = expand("small", self.STUDY, [], tmp_path)
        folder = StudyFolder(tmp_path)
        for run in (run for run in file.runs if run.is_trial):
            self.scored(folder, run, run.learning_rate * 100, higher_is_better=False)
        choose_settings(file, folder)
        assert {run.learning_rate for run in file.runs if run.chosen} == {1e-4}


def test_a_lock_goes_with_its_process_and_is_seen_by_others(tmp_path):
    file, _ = expand("small", SMALL, [], tmp_path)
    one, other, run = StudyFolder(tmp_path), StudyFolder(tmp_path), file.runs[0]
    with one.held(run) as mine:
        assert mine
        with other.held(run) as also_mine:
            assert not also_mine
        assert other.status(run) == "running"
        assert other.holder(run)["pid"] == os.getpid()
    assert other.status(run) == "waiting"
    # What a killed process leaves.
    (one.private / f"{run.key}.holder").write_text('{"pid": 1}')
    assert other.holder(run) is None
    assert other.status(run) == "waiting"


def test_failed_runs_are_set_aside_and_finished_ones_stay(tmp_path):
    file, _ = expand("small", SMALL, [], tmp_path)
    folder = StudyFolder(tmp_path)
    failed, finished = file.runs[:2]
    folder.run_folder(failed).write(Record(failed.key, {}, status="out_of_memory", error="too large"))
    folder.run_folder(finished).write(Record(finished.key, {}))
    for run in (failed, finished):
        assert folder.ended(run)
        folder.set_aside(run)
    assert not folder.ended(failed)
    assert folder.ended(finished)
    assert list((tmp_path / failed.folder).glob("out_of_memory-*.json"))
    shutil.rmtree(tmp_path / failed.folder)
