"""Files for `wandb sweep`: their commands compose as they stand, from any folder, and search what methods declare."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from petl_bench.cli import main
from petl_bench.config import load_config
from petl_bench.methods.registry import all_methods
from petl_bench.process import CONFIG_VARIABLE


def composed(sweep, drawn, monkeypatch, tmp_path):
    """The config of a run of the sweep, from another folder, with the settings that W&B has drawn."""
    command, flags = sweep["command"], [one for one in sweep["command"] if one.startswith("--") and one != "--force"]
    assert command[:2] == ["petl-bench", "run"]
    assert "--force" in command
    assert command[-1] == "${args_no_hyphens}"
    assert flags in ([], ["--config-dir"])
    if flags:
        monkeypatch.setenv(CONFIG_VARIABLE, command[command.index("--config-dir") + 1])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    monkeypatch.chdir(elsewhere)
    return load_config(
        [one for one in command[2:-1] if "=" in one] + [f"{key}={value}" for key, value in drawn.items()]
    )


def test_a_sweep_of_a_task_and_a_method_by_hand(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["task=mrpc", "method=lora", "data_root=rows", "task.protocol=held_out", "train.epochs=2"]
    assert main(["sweep", *words, "--runs", "7"]) == 0
    printed = capsys.readouterr()
    sweep = yaml.safe_load(printed.out)
    assert (sweep["name"], sweep["method"], sweep["run_cap"]) == ("mrpc-lora", "random", 7)
    assert sweep["metric"] == {"name": "selection_score", "goal": "maximize"}
    # LoRA's rate is 1e-3, its sizes are declared in its folder.
    assert sweep["parameters"] == {
        "method.r": {"values": [2, 4, 8, 16, 32]},
        "train.learning_rate": {
            "distribution": "log_uniform_values",
            "min": pytest.approx(1e-4),
            "max": pytest.approx(1e-2),
        },
    }
    cfg = composed(sweep, {"method.r": 4, "train.learning_rate": 5e-4}, monkeypatch, tmp_path)
    assert (cfg.task.name, cfg.method.r, cfg.train.learning_rate, cfg.train.epochs) == ("mrpc", 4, 5e-4, 2)
    assert (cfg.data_root, cfg.runs_dir) == (str(tmp_path / "rows"), str(tmp_path / "runs"))
    assert (cfg.tracker.name, printed.err) == ("wandb", "")


def test_rows_that_are_reported_are_not_used_to_choose_unsaid(capsys):
    assert main(["sweep", "task=mrpc", "method=full"]) == 0
    assert "task.protocol=held_out keeps them apart" in capsys.readouterr().err


def test_every_method_has_a_sweep_whose_command_composes(tmp_path, capsys, monkeypatch):
    names = sorted(name for name, method in all_methods().items() if name not in ("peft", "layer_selection"))
    assert main(["sweep", "task=smoke", f"method={','.join(names)}"]) == 2
    assert f"These are {len(names)} sweeps" in capsys.readouterr().err
    assert main(["sweep", "task=smoke", f"method={','.join(names)}", "--out", str(tmp_path / "out")]) == 0
    files = [line.removeprefix("wandb sweep ") for line in capsys.readouterr().out.splitlines()]
    assert len(files) == len(names)
    for name, file in zip(names, files, strict=True):
        sweep = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        drawn = {key: one["values"][0] if "values" in one else one["min"] for key, one in sweep["parameters"].items()}
        assert composed(sweep, drawn, monkeypatch, tmp_path).method.name == name


STUDY = """
settings: [task.protocol=held_out]
methods: {small: [method=lora, method.r=2], full: []}
tasks:
  mine: [task=custom, task.train_file=rows.csv, 'task.text_columns=[text]', task.label_column=label]
cells:
  - {methods: [full], settings: [train.epochs=9]}
"""


def test_a_studys_own_settings_rates_and_files_stay(tmp_path, capsys, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\ngood,1\nbad,0\n")
    (tmp_path / "mine.yaml").write_text(STUDY + "learning_rates: {small: [1e-3, 1e-2]}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "mine.yaml", "--out", "out"]) == 0
    small, full = (
        yaml.safe_load((tmp_path / "out" / f"mine-mine-{name}.yaml").read_text()) for name in ("small", "full")
    )
    # The study sets the rank, and names the rates.
    assert (small["method"], small["parameters"]) == ("grid", {"train.learning_rate": {"values": [1e-3, 1e-2]}})
    assert "run_cap" not in small
    assert full["method"] == "random"
    cfg = composed(small, {"train.learning_rate": 1e-3}, monkeypatch, tmp_path)
    assert (cfg.method.name, cfg.method.r, cfg.task.train_file) == ("lora", 2, str(tmp_path / "rows.csv"))
    assert cfg.runs_dir == str(tmp_path / "runs" / "mine")
    assert composed(full, {}, monkeypatch, tmp_path).train.epochs == 9


def test_options_of_ones_own_go_along(tmp_path, capsys, monkeypatch):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "lora4.yaml").write_text("defaults: [lora, _self_]\nr: 4\n")
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "task=smoke", "method=lora4", "--config-dir", "conf"]) == 0
    sweep = yaml.safe_load(capsys.readouterr().out)
    folder = sweep["command"][sweep["command"].index("--config-dir") + 1]
    assert folder == str(tmp_path / "conf")
    assert composed(sweep, {"method.r": 8}, monkeypatch, tmp_path).method.r == 8


def test_a_search_of_a_study_says_how_many_and_how(tmp_path, capsys, monkeypatch):
    text = STUDY.replace("methods: {small: [method=lora, method.r=2], full: []}", "methods: {lora: []}")
    text = text.replace("  - {methods: [full], settings: [train.epochs=9]}", "  - {settings: [train.epochs=9]}")
    sizes = "{method.r: [4, 8], train.batch_size: {low: 8, high: 64, log: true}}"
    search = f"search: {{trials: 5, sampler: tpe, space: {{lora: {sizes}}}}}\n"
    (tmp_path / "rows.csv").write_text("text,label\ngood,1\nbad,0\n")
    (tmp_path / "mine.yaml").write_text(text + search)
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "mine.yaml"]) == 0
    sweep = yaml.safe_load(capsys.readouterr().out)
    assert (sweep["method"], sweep["run_cap"]) == ("bayes", 5)
    assert sweep["parameters"]["method.r"] == {"values": [4, 8]}
    assert sweep["parameters"]["train.batch_size"] == {
        "distribution": "q_log_uniform_values",
        "q": 1,
        "min": 8,
        "max": 64,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=mrpc"], "takes the name of a study, or task=NAMES and method=NAMES"),
        (["task=mrpc", "method=lorra"], "Did you mean"),
        (["task=mrpc", "method=lora", "--runs", "0"], "--runs=0 must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, message, capsys):
    assert main(["sweep", *words]) == 2
    assert message in capsys.readouterr().err
