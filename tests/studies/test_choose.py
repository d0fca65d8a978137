"""`petl-bench choose`: rows that choose and rows that are reported, the answer, interruptions."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from forked import Command
from found_records import find_records
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.records.study_file import read_study, selection_score
from petl_bench.reports import report
from petl_bench.reports.differences import Difference
from petl_bench.reports.ranking import MethodComparison
from petl_bench.studies import answer as answer_module
from petl_bench.studies import worker
from petl_bench.studies.choice import Limits
from petl_bench.studies.choice_trainings import REFERENCE, prepare_rows
from petl_bench.studies.search import RATE
from petl_bench.tasks.columns import data_settings
from petl_bench.tasks.load import load_task
from studies.tickets import METHODS, SMALL, WORDS, write_tickets

DRAW = report._draw


def decided(out):
    """What an answer says, apart from what was timed."""
    found = json.loads(out)
    for one in found["compared_with_it"].values():
        one["cheaper"] = [what for what in one["cheaper"] if "latency" not in what]
    return {key: found[key] for key in found if key not in ("seconds", "folder", "run", "command")}


def records_of(folder):
    study = read_study(folder)
    records = {record.run_key: record for record in find_records([folder])[0]}
    return study, records


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_answer_is_the_best_on_rows_that_are_not_reported(choose, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_draw", DRAW)
    code, out, _ = choose(*SMALL, *METHODS, "--json")
    assert code == 0
    found = json.loads(out)
    study, records = records_of(tmp_path / "runs" / "choose-tickets")
    trials = [run for run in study.runs if run.is_trial]
    # LoRA's default with both heads, then two settings of each method. Without a limit, these trainings are whole, as
    # they have few updates.
    assert sorted(run.method for run in trials) == ["head", "head", "lora", "lora", "lora", "lora"]
    assert [run.share == 1 for run in trials] == [False, False, True, True, True, True]
    poolings = [run.tried.get("backbone.pooling") for run in trials]
    scores = {run.tried.get("backbone.pooling"): selection_score(records[run.key]) for run in trials[:2]}
    assert set(scores) == {None, "mean"}
    # The better head is that of all others; LoRA as it would be run without a choice keeps its own.
    assert set(poolings[2:]) == {max(scores, key=scores.get)}
    references = [run for run in study.runs if run.method == REFERENCE]
    assert all("backbone.pooling" not in run.tried for run in references)
    assert len({records[run.key].history[-1].step for run in trials[2:]}) == 1
    assert {run.seed for run in trials} == {1000}
    finals = {}
    for run in study.runs:
        if not run.is_trial:
            finals.setdefault(run.method, []).append(records[run.key])
    assert all(sorted(one.protocol.seed for one in mine) == [0, 1, 2] for mine in finals.values())
    # A whole training of the same settings that chose is one more seed.
    means = {}
    for name, mine in finals.items():
        settings = next(run.candidate for run in study.runs if run.method == name and not run.is_trial)
        method = "lora" if name == REFERENCE else name
        alike = [run for run in trials if run.share == 1 and (run.method, run.candidate) == (method, settings)]
        means[name] = statistics.fmean(map(selection_score, [*mine, *(records[run.key] for run in alike)]))
    best = max(means, key=means.get)
    assert found["method"] == ("lora" if best == REFERENCE else best)
    reported = [one.selected_scores["accuracy"] for one in finals[best]]
    assert found["score"] == pytest.approx(statistics.fmean(reported))
    assert found["interval_of_other_rows"][0] <= found["score"] <= found["interval_of_other_rows"][1]
    assert found["trainings"] == len(records)
    assert Path(found["run"], "adapter").is_dir()
    assert (tmp_path / "runs" / "choose-tickets" / "choice.png").is_file()

    # The rows: in three parts without a common one, and a trial has not read those that are reported.
    folder = tmp_path / "runs" / "choose-tickets" / "rows"
    parts = {
        name: {row["text"] for row in lines_of(folder / f"{name}.jsonl")} for name in ("train", "selection", "report")
    }
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 120
    for run in trials:
        assert records[run.key].data.rows_per_split == {
            "train": len(parts["train"]),
            "validation": len(parts["selection"]),
        }
    # The head's trainings see the same states: the first computes them, although it sees every row less than twice.
    of_head = [records[run.key].frozen for run in study.runs if run.method == "head"]
    assert [(frozen.cache, frozen.reused) for frozen in of_head[:2]] == [("memory", False), ("memory", True)]
    assert not any(records[run.key].baselines for run in trials)
    assert found["baselines"] == finals[best][0].baselines
    assert set(found["baselines"]) == {"majority", "tfidf"}
    report_ids = {record.protocol.num_eval_examples for mine in finals.values() for record in mine}
    assert report_ids == {len(parts["report"])}

    # The same command has nothing left to do.
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("result.json")}
    code, again, _ = choose(*SMALL, *METHODS, "--json")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("result.json")} == times
    assert {**json.loads(again), "seconds": 0} == {**found, "seconds": 0}
    code, out, err = choose(*SMALL, *METHODS)
    assert code == 0
    assert "text column 'text', label column 'queue'" in err
    lines = out.splitlines()
    assert lines[0].startswith(f"recommended: {best} (")
    assert lines[1].strip() == found["command"]
    assert "rows that chose nothing, mean of 3 seeds" in lines[2]
    assert ("  its shorter trainings all scored the same" in out) == found["trials_were_alike"]
    of_baselines = [scores[found["metric"]] for scores in found["baselines"].values()]
    assert ("  no better than " in out) == (max(of_baselines) >= found["score"])
    assert any(line.startswith("the search: ") for line in lines)
    assert out.index("trained: ") < out.index("mean ± sd over seeds")
    assert len(out[: out.index("trained: ")].splitlines()) <= 10
    # Another request is another choice, and in what it differs is said; the rows of this one stay as they are.
    kept = {file: file.read_bytes() for file in folder.iterdir()}
    write_tickets(tmp_path / "other" / "tickets.csv", seed=1)
    code, _, err = choose("data=other/tickets.csv", *SMALL[1:], *METHODS)
    assert code == 2
    assert "holds a choice that differs in its settings" in err
    assert {file: file.read_bytes() for file in folder.iterdir()} == kept
    code, _, err = choose(*SMALL, *METHODS, "task.max_length=64", "--trainable", "50%", "runs_dir=runs/choose-tickets")
    assert code == 2
    assert "its settings (now task.max_length=64); the limit trainable_percent (None, now 50.0)" in err
    code, _, err = choose(*SMALL, "--methods", "lora,bitfit")
    assert code == 2
    assert "holds a choice that differs in its methods (it had head, now bitfit)" in err


def test_interrupted_after_any_number_of_trainings_it_ends_with_the_same_answer(choose, monkeypatch):
    small = [*SMALL, "--methods", "head", "--json"]
    _, undisturbed, _ = choose(*small, "runs_dir=whole")
    real, left = worker.make, iter([1, 2, math.inf])
    rest = [next(left)]

    def make(run, folder):
        if rest[0] <= 0:
            raise KeyboardInterrupt
        rest[0] -= 1
        real(run, folder)

    monkeypatch.setattr(worker, "make", make)
    codes = []
    while not codes or codes[-1] != 0:
        code, out, _ = choose(*small, "runs_dir=parts")
        codes.append(code)
        rest[0] = next(left, math.inf)
    assert codes == [130, 130, 0]
    assert decided(out) == decided(undisturbed)


def test_trainings_that_failed_for_a_while_are_made_again(choose, monkeypatch):
    small = [*SMALL, "--methods", "head", "--json"]
    real = worker.make

    def failing(run, folder):
        worker.write_failure(run, folder, "There is no network.")

    monkeypatch.setattr(worker, "make", failing)
    code, _, err = choose(*small)
    assert (code, "No training could be made: There is no network." in err) == (1, True)
    # Those that choose succeed, those on all rows fail: this is told, and it is not the time.
    monkeypatch.setattr(worker, "make", lambda run, folder: (real if run.is_trial else failing)(run, folder))
    code, out, _ = choose(*small[:-1])
    assert code == 0
    assert "training, as those on all rows failed (There is no network.)" in out
    assert "time" not in out.replace("times", "")
    monkeypatch.setattr(worker, "make", real)
    code, out, _ = choose(*small)
    assert (code, json.loads(out)["on_all_rows"]) == (0, True)


def test_what_answers_too_slowly_at_last_is_not_recommended(choose, monkeypatch):
    words = [*SMALL, *METHODS, "--latency", "10s", "--json"]
    first = json.loads(choose(*words)[1])["method"]

    def is_fast_enough(limits, *records):
        return all(record.config["method"]["name"] != first for record in records)

    with monkeypatch.context() as patch:
        patch.setattr(Limits, "is_fast_enough", is_fast_enough)
        assert json.loads(choose(*words)[1])["method"] != first
        patch.setattr(Limits, "is_fast_enough", lambda _, *records: all(one.protocol.seed == 1000 for one in records))
        assert "more than --latency 10000ms" in choose(*words[:-1])[1]


@pytest.mark.parametrize(("tried", "is_told"), [({RATE: 1e-3}, True), ({RATE: 1e-3, "method.r": 4}, False)])
def test_a_tuned_lora_is_not_lora_at_its_default(tried, is_told):
    """LoRA's default is not trained again where the best LoRA is it; a tuned one does not stand for it."""
    comparison = MethodComparison(
        "tickets", "tickets", ("tickets",), "lora", "head", True, Difference(-0.1, 3), 0.01, 1
    )
    defaults = SimpleNamespace(candidates=[("lora", {RATE: 1e-3})])
    choice = SimpleNamespace(
        state=SimpleNamespace(steps=[None, defaults]),
        trained=[SimpleNamespace(method="lora", tried=tried, is_trial=False)],
    )
    best = SimpleNamespace(protocol=SimpleNamespace(higher_is_better=True))
    result = SimpleNamespace(best=(None, best), comparisons={"lora": comparison}, cheaper={})
    lines = list(answer_module._comparison_lines(choice, result))
    assert ("against LoRA at its default: gains, +10.0 points" in lines) == is_told


@pytest.mark.parametrize(
    ("trials", "alike"),
    [
        ([("lora", 0.2, 0.5), ("head", 0.2, 0.5)], True),
        ([("lora", 0.2, 0.5), ("head", 0.2, 0.6)], False),
        # The longer trainings chose the methods.
        ([("lora", 0.2, 0.5), ("head", 0.2, 0.5), ("lora", 0.4, 0.5), ("head", 0.4, 0.6)], False),
        ([("lora", 0.2, 0.5), ("head", 0.2, 0.6), ("lora", 0.4, 0.5), ("head", 0.4, 0.5)], True),
        # One method alone chose among its settings.
        ([("lora", 0.2, 0.5), ("lora", 0.2, 0.5)], False),
    ],
)
def test_trials_that_say_nothing_are_told(trials, alike, monkeypatch):
    monkeypatch.setattr(answer_module, "selection_score", lambda score: score)
    runs = [SimpleNamespace(method=name, share=share, is_trial=True, score=score) for name, share, score in trials]
    runs.append(SimpleNamespace(method="head", share=1.0, is_trial=False, score=0.9))
    choice = SimpleNamespace(study=SimpleNamespace(runs=runs), record=lambda run: run.score)
    assert answer_module.trials_were_alike(choice) == alike


@pytest.mark.slow
def test_killed_at_any_instant_it_ends_with_the_same_answer(tmp_path):
    write_tickets(tmp_path / "tickets.csv")
    command = ["choose", *SMALL, "--methods", "lora,head", "--json"]

    def start(folder):
        return Command([*command, f"runs_dir={folder}"], tmp_path, Path(tempfile.mkdtemp(dir=tmp_path)) / "output")

    undisturbed, _ = start("whole").communicate(timeout=600)
    draw = random.Random(5)
    for _ in range(6):
        process = start("killed")
        time.sleep(draw.uniform(1, 15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    out, err = start("killed").communicate(timeout=600)
    assert out, err
    assert decided(out) == decided(undisturbed)


class TestRows:
    def prepare(self, tmp_path, *words):
        overrides = [*data_settings(str(tmp_path / "tickets.csv"), {})[0], "backbone=tiny_bert", *words]
        rows = prepare_rows(load_config(overrides), overrides, tmp_path / "runs")
        assert not (tmp_path / "runs").exists()
        rows.write()
        return rows

    def test_many_rows_are_cut_into_nested_parts_with_every_class(self, tmp_path):
        write_tickets(tmp_path / "tickets.csv", rows=4000)
        rows = self.prepare(tmp_path)
        folder = tmp_path / "runs" / "rows"
        sizes, texts = [], []
        for name in ("train-9th", "train-3th", "train"):
            lines = lines_of(folder / f"{name}.jsonl")
            assert {line["queue"] for line in lines} == set(WORDS)
            sizes.append(len(lines))
            texts.append({line["text"] for line in lines})
        assert texts[0] < texts[1] < texts[2]
        assert [subset.by_rows for subset in rows.subsets] == [True, True]
        assert [subset.share for subset in rows.subsets] == [sizes[0] / sizes[2], sizes[1] / sizes[2]]
        assert sizes[2] == rows.counts["train"]
        assert sum(rows.counts.values()) == 4000
        # Three epochs of batches of 32 are more than 400 updates' worth of these; the default stays.
        assert "train.epochs=6" in rows.overrides

    def test_equal_texts_are_in_one_part(self, tmp_path):
        with (tmp_path / "tickets.csv").open("w") as stream:
            stream.write("text,queue\n")
            for number in range(300):
                stream.write(f"one of thirty texts {number % 30},{'ab'[number % 2]}\n")
        self.prepare(tmp_path)
        parts = [{line["text"] for line in lines_of(tmp_path / "runs" / "rows" / f"{name}.jsonl")}
                 for name in ("train", "selection", "report")]  # fmt: skip
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]

    def test_rows_of_a_group_are_in_one_part_and_keep_their_group(self, tmp_path):
        with (tmp_path / "tickets.csv").open("w") as stream:
            stream.write("text,queue,author\n")
            stream.writelines(
                f"some text number {number},{'ab'[number % 2]},author {number % 30}\n" for number in range(300)
            )
        overrides = ["task=custom", f"task.train_file={tmp_path / 'tickets.csv'}", "task.label_column=queue"]
        overrides += ["task.group_column=author", "backbone=tiny_bert"]
        prepare_rows(load_config(overrides), overrides, tmp_path / "runs").write()
        parts = [lines_of(tmp_path / "runs" / "rows" / f"{name}.jsonl") for name in ("train", "selection", "report")]
        authors = [{line["author"] for line in part} for part in parts]
        assert sum(map(len, authors)) == len(set.union(*authors)) == 30
        assert sum(map(len, parts)) == 300

    def test_settings_that_drew_the_rows_are_not_applied_to_their_parts_again(self, tmp_path):
        write_tickets(tmp_path / "tickets.csv", rows=300)
        given = ["task.num_train_examples=200", "task.rows_per_class=30"]
        for drawn, count in ((given[:1], 201), (given[1:], 91)):
            rows = self.prepare(tmp_path, *drawn)
            assert sum(rows.counts.values()) == count
            for overrides in (rows.overrides, rows.subsets[0].overrides):
                last = load_config(["task=custom", "backbone=tiny_bert", *drawn, *self.columns(tmp_path), *overrides])
                # The whole of each file is read.
                assert len(load_task(last.task, None).train) == rows.counts["train"]
            shutil.rmtree(tmp_path / "runs")

    def columns(self, tmp_path):
        return data_settings(str(tmp_path / "tickets.csv"), {})[0]

    def test_a_class_whose_rows_must_stay_together_is_still_a_class(self, tmp_path):
        with (tmp_path / "tickets.csv").open("w") as stream:
            stream.write("text,queue,author\n")
            stream.writelines(f"text {n},{'ab'[n % 2]},author {n % 30}\n" for n in range(300))
            stream.writelines(f"a rare text {n},null,author 3\n" for n in range(5))
        overrides = ["task=custom", f"task.train_file={tmp_path / 'tickets.csv'}", "task.label_column=queue"]
        overrides += ["task.group_column=author", "backbone=tiny_bert"]
        missed = 0
        for seed in range(8):
            settings = [*overrides, f"task.data_seed={seed}"]
            rows = prepare_rows(load_config(settings), settings, tmp_path / f"runs{seed}")
            rows.write()
            cfg = load_config([*settings, *rows.overrides])
            missed += cfg.task.labels is not None
            assert load_task(cfg.task, None).labels == ["a", "b", "null"]
        assert 0 < missed < 8

    def test_rows_of_few_groups_are_too_few(self, tmp_path):
        with (tmp_path / "tickets.csv").open("w") as stream:
            stream.write("text,queue,author\n")
            stream.writelines(f"text {n},{'ab'[n % 2]},author {n % 2}\n" for n in range(300))
        overrides = ["task=custom", f"task.train_file={tmp_path / 'tickets.csv'}", "task.label_column=queue"]
        overrides += ["task.group_column=author", "backbone=tiny_bert"]
        with pytest.raises(RequestError, match="rows of one group stay together, and there are 2"):
            prepare_rows(load_config(overrides), overrides, tmp_path / "runs")

    def test_five_hundred_classes_are_all_trained(self, tmp_path):
        classes = [f"class {number}" for number in range(500)]
        with (tmp_path / "tickets.csv").open("w") as stream:
            stream.write("text,queue\n")
            stream.writelines(f"about {name} number {number},{name}\n" for name in classes for number in range(5))
        rows = self.prepare(tmp_path)
        trained = {line["queue"] for line in lines_of(tmp_path / "runs" / "rows" / "train.jsonl")}
        assert len(trained) == 500
        assert rows.counts == {"train": 1500, "selection": 500, "report": 500}

    def test_a_task_of_the_package_keeps_its_own_rows_for_the_report(self, tmp_path):
        rows = prepare_rows(load_config(["task=banking77_few"]), ["task=banking77_few"], tmp_path)
        assert rows.counts == {"train": 770, "selection": 385, "report": 3080}
        assert not any("protocol" in override for override in rows.overrides)
        assert not (tmp_path / "rows" / "report.jsonl").exists()
        assert "task.protocol=standard" in rows.subsets[0].overrides

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("text,label\n", "tickets.csv holds no rows"),
            ("text,label\na b c,x\nd e f,y\ng h i,x\n", "rows are too few"),
            ("text,label\n" + "some words here,x\n" * 100, "fewer than two labels"),
            ("text,label\n" + "some words here,x\nother words there,\n" * 50, "has no label in 'label'"),
            ("a,b\n" + "".join(f"{n},{n * 7}\n" for n in range(100)), "which column holds the labels is not clear"),
            (
                "title,body,label\n" + "".join(f"a title of {n},a body of {n},{n % 2}\n" for n in range(100)),
                "which column holds the texts is not clear .'title', 'body' all hold texts",
            ),
            (
                "text,kind,part\n" + "".join(f"some words {n},{n % 2},{n % 3}\n" for n in range(100)),
                "'kind', 'part' all look like it",
            ),
        ],
    )
    def test_rows_that_allow_no_choice_are_a_sentence(self, choose, tmp_path, content, sentence):
        (tmp_path / "tickets.csv").write_text(content)
        code, out, err = choose(*SMALL, *METHODS)
        assert (code, out) == (2, "")
        assert re.search(sentence, err), err


def test_what_is_chosen_cannot_be_given(choose):
    for word in ("method=lora", "method.r=4", "train.learning_rate=1e-3"):
        code, _, err = choose(*SMALL, word)
        assert code == 2
        assert "it is chosen here" in err
    assert choose(*SMALL, "--methods", "lora,nothing")[0] == 2
    assert choose(*SMALL, "seeds=1")[0] == 2
    assert choose(*SMALL, "--time", "soon")[0] == 2
    assert choose(*SMALL, "--trainable", "-3")[0] == 2


@pytest.mark.parametrize(
    ("level", "num_rows", "seeds", "spread"),
    [(0.75, 200, 3, 0.01), (0.97, 24, 3, 0.005), (0.97, 24, 1, 0.0), (0.98, 100, 1, 0.0), (0.97, 40, 1, 0.0)],
)
def test_the_interval_holds_a_training_on_other_rows(level, num_rows, seeds, spread):
    """Simulated: trainings score a row right by chance, with a spread of their own; one more on as many rows.

    With one seed, the interval is for the same training on other rows.
    """
    draw, inside = np.random.default_rng(0), 0
    for _ in range(300):
        runs = []
        levels = draw.normal(level, spread, size=seeds + 1)
        easy = draw.normal(0, 0.3 if level < 0.9 else 0.01, size=num_rows)
        for of_seed in levels[:seeds]:
            right = draw.random(num_rows) < np.clip(of_seed + easy, 0, 1)
            predictions = SimpleNamespace(labels=np.ones(num_rows, dtype=int), predicted=right.astype(int))
            protocol = SimpleNamespace(metric="accuracy", higher_is_better=True)
            record = SimpleNamespace(
                protocol=protocol, selected_scores={"accuracy": right.mean()}, predictions=predictions
            )
            runs.append((None, record))
        _, (low, high) = answer_module._score(runs, lambda record: record.predictions)
        others = levels[0] if seeds == 1 else levels[-1]
        other = draw.random(num_rows) < np.clip(others + draw.permutation(easy), 0, 1)
        inside += low <= other.mean() <= high
    assert inside >= 285
