"""The command line as a user meets it: results on stdout, messages on stderr, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from few_rows import few_demo_rows
from forked import Command
from found_records import find_records
from petl_bench import catalog, cli
from petl_bench.commands import COMMANDS
from petl_bench.parsers import build_parsers
from petl_bench.trackers import TRACKERS

TINY = ["task=smoke", "backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=1", "train.batch_size=16"]
UNMEASURED = ["measure.ledger=false", "measure.inference=false"]
PETL_BENCH = [sys.executable, "-m", "petl_bench"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a command in this process, in an empty directory; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr("petl_bench.tasks.load.demo_rows", few_demo_rows)

    def call(*words: str) -> int:
        try:
            return cli.main(list(words))
        except SystemExit as stopped:
            return stopped.code

    return call


def test_help_and_list_import_no_heavy_library(tmp_path):
    commands = [["--help"], ["--version"], ["list"], ["list", "methods"], ["list", "--json"], ["run", "--help"]]
    heavy = {"torch", "transformers", "peft", "datasets"}
    script = f"""
import contextlib, sys
from petl_bench.cli import main
for command in {commands!r}:
    with contextlib.suppress(SystemExit):
        main(command)
    # Hydra composes the settings that `run --help` shows.
    heavy = {heavy!r} | ({{"omegaconf", "hydra"}} if command[0] != "run" else set())
    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))

# Enough for a finished run to be recognised: without these imports that takes half the time.
import petl_bench.run.run
heavy = {{"transformers", "peft", "datasets", "accelerate"}} & set(sys.modules)
assert not heavy, ("petl_bench.run.run", heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: petl-bench" in done.stdout


def test_the_parsers_name_what_the_packages_offer():
    # The parsers do not import these lists, so that --help answers at once.
    _, parsers = build_parsers()
    choices = {name: {option.dest: option.choices for option in parser._actions} for name, parser in parsers.items()}
    assert list(parsers) == ["run", *COMMANDS]
    assert set(choices["list"]["kind"]) == {*catalog._KINDS, *catalog._ASKED_FOR}
    assert ("none", *choices["sync"]["tracker"]) == TRACKERS


@pytest.mark.parametrize("name", ["run", "report", "compare", "list", "predict", "sync", "dashboard", "fetch"])
def test_every_command_takes_help(name, command, capsys):
    assert command(name, "--help") == 0
    assert f"petl-bench {name}" in capsys.readouterr().out


def test_a_run_prints_its_result_and_leaves_its_record(command, capsys, tmp_path):
    assert command("run", *TINY) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    (record,), _ = find_records([tmp_path / "runs"])
    assert record.status == "finished"
    folder = next((tmp_path / "runs").iterdir())
    assert {file.name for file in folder.iterdir()} == {"result.json", "predictions.parquet", "log.txt", "adapter"}
    assert "epoch 1.00" in (folder / "log.txt").read_text()
    assert "peak memory, train" in (folder / "log.txt").read_text()
    # Hydra leaves nothing behind.
    assert [item.name for item in tmp_path.iterdir()] == ["runs"]


def test_json_alone_goes_to_stdout(command, capsys):
    assert command("run", "--json", *TINY) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "finished"
    assert "epoch 1.00" in printed.err


def test_a_multirun_makes_every_combination_once(command, capsys, tmp_path):
    grid = ["-m", "method=full,lora", "train.seed=0,1", *TINY, *UNMEASURED]
    assert command("run", *grid) == 0
    records, _ = find_records([tmp_path / "runs"])
    assert len(records) == 4
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("result.json")}
    assert command("run", *grid) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("result.json")} == written
    assert capsys.readouterr().err.count("finished already") == 4


def test_force_repeats_a_run(command, tmp_path):
    assert command("run", *TINY, *UNMEASURED) == 0
    (file,) = (tmp_path / "runs").rglob("result.json")
    before = file.stat().st_mtime_ns
    assert command("run", "--force", *TINY, *UNMEASURED) == 0
    assert file.stat().st_mtime_ns > before


def test_settings_of_hydra_ask_for_the_same_run(command, capsys):
    assert command("run", *TINY, *UNMEASURED) == 0
    assert command("run", *TINY, *UNMEASURED, "hydra.job.name=another") == 0
    assert capsys.readouterr().err.count("finished already") == 1


def test_a_failing_run_does_not_stop_the_others(command, capsys, tmp_path):
    assert command("run", "-m", "method=lora", "method.r=0,2", *TINY) == 2
    captured = capsys.readouterr()
    assert captured.err.count("petl-bench: method.r=0 must be at least 1.") == 1
    assert "Traceback" not in captured.err
    records, _ = find_records([tmp_path / "runs"])
    assert [record.status for record in records] == ["finished"]
    # The request that could not work leaves no folder.
    assert len([item for item in (tmp_path / "runs").iterdir() if not item.name.startswith(".")]) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "task=mrcp"], 2, "Did you mean 'mrpc'"),
        (["run", "train.lr=1"], 2, "train.learning_rate"),
        (["run", "train.epochs=x"], 2, "train.epochs=x"),
        (["run", "method=full", "method.r=2"], 2, "method.r is not a setting here"),
        (["run", "method=peft", "method.args={r:2}"], 2, "+method.args.NAME=VALUE"),
        (["run", "task=mrpc", "data_root=nowhere"], 2, "data_root=nowhere"),
        (["run", "task=custom", "task.train_file=no.csv"], 2, "no.csv"),
        (["run", "backbone.path=nowhere"], 2, "config.json"),
        (["run", "train.precision=fp16", "train.device=cpu"], 2, "use bf16 or fp32"),
        (["run", "task.max_length=5000"], 2, "at most 512 tokens"),
        (["report", "nowhere"], 2, "nowhere"),
        (["compare", "nowhere", "nowhere"], 2, "no finished run"),
        (["predict", "nowhere", "--text", "a"], 2, "no finished run"),
        (["frobnicate"], 2, "invalid choice"),
        (["fetch", "task=mrcp"], 2, "Did you mean 'mrpc'"),
        (["fetch", "backbone=bert_base", "backbone.hub_id=nobody/nothing"], 1, "hub cannot be reached"),
        (["run", "backbone=bert_base", "backbone.hub_id=nobody/nothing"], 1, "backbone.path=DIR"),
    ],
)
def test_wrong_input_ends_in_one_sentence(words, code, message, command, capsys):
    assert command(*words) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    messages = [line for line in captured.err.splitlines() if line.startswith("petl-bench: ")]
    assert len(messages) == 1


def test_a_hub_dataset_out_of_reach_names_the_way_out(tmp_path):
    process = Command(["run", "task=mrpc", "backbone=tiny_bert"], tmp_path, tmp_path / "output")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "petl-bench fetch task=mrpc" in err
    assert "Traceback" not in err
    (record,), _ = find_records([tmp_path / "runs"])
    assert record.status == "failed"
    assert "data_root=DIR" in record.error


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("PETL_BENCH_DEBUG", "1")
    process = Command(["run", "train.batch_size=0"], tmp_path, tmp_path / "output")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" in err
    assert "RequestError" in err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_so_and_leaves_nothing_half_written(signum, code, tmp_path):
    words = ["run", *TINY, *UNMEASURED, "train.epochs=5000", "train.evaluate_every=10"]
    process = Command(words, tmp_path, tmp_path / "output")
    while process.poll() is None and "\nepoch" not in process.errors():
        time.sleep(0.05)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    (record,), unreadable = find_records([tmp_path / "runs"])
    assert record.status == "interrupted"
    assert record.history
    assert not unreadable
    assert not list(tmp_path.rglob("*.partial"))


def test_report_list_and_predict(command, capsys, tmp_path):
    assert command("run", "-m", "method=lora,full", *TINY) == 0
    capsys.readouterr()
    assert command("report", "runs", "--format", "md", "--plot", "plot.png") == 0
    out = capsys.readouterr().out
    assert "| lora |" in out
    assert (tmp_path / "plot.png").is_file()
    assert command("report", "runs", "--json") == 0
    assert {row["method"] for row in json.loads(capsys.readouterr().out)["groups"]} == {"lora", "full"}
    assert command("list", "methods", "--json") == 0
    assert {row["method"] for row in json.loads(capsys.readouterr().out)} >= {"full", "head", "bitfit", "lora", "peft"}

    assert command("list", "methods", "--format", "md") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["| method | origin | what is trained |", "| --- | --- | --- |"]
    assert any(line.startswith("| lora | ") for line in lines)

    for folder in (tmp_path / "runs").glob("smoke-*"):
        assert command("predict", str(folder), "--text", "the plot was good", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["label"] in ("negative", "positive")
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0)


def test_predictions_are_those_of_the_run(command, capsys, tmp_path):
    """The saved model gives again exactly the score that the record states."""
    adalora = ["method=peft", "method.type=ADALORA", "+method.args.init_r=4", "+method.args.target_r=1",
               "+method.args.tinit=1", "+method.args.tfinal=2", "+method.args.deltaT=1"]  # fmt: skip
    methods = {"lora": ["method=lora"], "full": ["method=full"], "bitfit": ["method=bitfit"], "head": ["method=head"]}
    for method, words in (methods | {"adalora": adalora}).items():
        several = ["train.epochs=4", "train.learning_rate=5e-3", *UNMEASURED]
        assert command("run", *TINY, *words, f"runs_dir={method}", *several) == 0
        (record,), _ = find_records([tmp_path / method])
        rows = few_demo_rows("validation", 42)
        (tmp_path / "rows.tsv").write_text("sentence\n" + "\n".join(rows.texts[0]) + "\n")
        capsys.readouterr()
        assert command("predict", str(next((tmp_path / method).glob("smoke-*"))), "--file", "rows.tsv", "--json") == 0
        labels = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
        names = ["negative", "positive"]
        right = sum(names[truth] == label for truth, label in zip(rows.labels, labels, strict=True))
        assert right / len(labels) == record.scores.best["accuracy"], method


def test_broken_weights_and_folders_are_reported_in_one_sentence(command, capsys, tmp_path):
    assert command("run", *TINY, *UNMEASURED) == 0
    folder = next((tmp_path / "runs").glob("smoke-*"))
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    capsys.readouterr()
    assert command("predict", str(folder), "--text", "a") == 2
    assert "adapter_model.safetensors: not what the run wrote" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command("run", *TINY, "runs_dir=file") == 2
    assert "runs_dir=file is no folder" in capsys.readouterr().err
    assert command("report", "runs", "--plot", "file/plot.png") == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "file" in err


def test_predict_reads_lines_from_stdin(command, tmp_path, monkeypatch, capsys):
    assert command("run", *TINY, *UNMEASURED) == 0
    folder = next((tmp_path / "runs").glob("smoke-*"))
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", [f"line {i}\n" for i in range(70)])
    assert command("predict", str(folder)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["label", "p(negative)", "p(positive)"]
    assert len(lines) == 71
    assert command("predict", str(folder), "--text", "a", "b") == 2
    assert "takes 1: sentence" in capsys.readouterr().err
    # What holds no words is told, not guessed at in silence.
    monkeypatch.setattr(sys, "stdin", ["a line\n", " \n"])
    assert command("predict", str(folder)) == 0
    assert "no words in ['line 2 of standard input']" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", [])
    assert command("predict", str(folder)) == 0
    assert "standard input held no text" in capsys.readouterr().err


def test_a_custom_task_end_to_end(command, tmp_path, capsys):
    rows = "".join(f"{word} {i},{label}\n" for i in range(20) for word, label in [("good", "up"), ("bad", "down")])
    (tmp_path / "mine.csv").write_text("review,verdict\n" + rows)
    custom = ["task=custom", "task.train_file=mine.csv", "task.text_columns=[review]", "task.label_column=verdict"]
    assert command("run", "backbone=tiny_bert", "train.epochs=1", *custom) == 0
    folder = next((tmp_path / "runs").glob("custom-*"))
    (tmp_path / "mine.csv").unlink()  # the labels are in the record
    capsys.readouterr()
    assert command("predict", str(folder), "--text", "good 3") == 0
    assert capsys.readouterr().out.splitlines()[0] == "label\tp(down)\tp(up)"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("petl-bench stu", ["study "]),
        ("petl-bench run backbone=mini", ["backbone=minilm "]),
        ("petl-bench plan train.schedule=c", ["train.schedule=cosine", "train.schedule=constant"]),
        ("petl-bench study dem", ["demo "]),
        ("petl-bench run --f", ["--force "]),
    ],
)
def test_the_tab_key_completes(line, words, tmp_path):
    shell = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_COMP_WORDBREAKS": " "}
    shell["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "words")
    shell["_ARGCOMPLETE_IFS"] = "\n"
    subprocess.run(PETL_BENCH, env=os.environ | shell, check=True, timeout=60)
    assert (tmp_path / "words").read_text().splitlines() == words
