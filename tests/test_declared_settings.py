"""Settings: each says what it means where it is declared; a user's folder of options is found by every command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import omegaconf
import pytest

from petl_bench.cli import main
from petl_bench.config import RunConfig, as_list, load_config, run_help, run_settings
from petl_bench.errors import RequestError
from petl_bench.process import CONFIG_VARIABLE
from petl_bench.records.run_key import is_location
from petl_bench.run.pretrain import PretrainConfig, TextsConfig
from petl_bench.settings import MISSING, declared, option_names
from petl_bench.studies.definition import ExecutorConfig, open_study

TINY = ["backbone=tiny_bert", "task=smoke"]


def test_every_setting_says_what_it_means():
    kinds = (ExecutorConfig, TextsConfig, PretrainConfig)
    silent = {one.name for kind in kinds for one in declared(kind) if not one.meaning}
    groups = {field.name for field in dataclasses.fields(RunConfig)} | {"texts", "phase"}
    assert silent - groups == {"name"}
    named = {one.name for one in run_settings()}
    cfg = load_config([]).to_dict()
    # A recipe takes effect through other groups, and the names are those of the options.
    keys = {f"{group}.{key}" for group, values in cfg.items() if isinstance(values, dict) for key in values}
    assert {key for key in keys - named if not key.endswith(".name")} == {"recipe.source", "recipe.tasks"}
    assert all(len(one.meaning) > 10 for one in run_settings())


def test_the_mark_of_what_is_missing_is_omegaconfs():
    assert MISSING == omegaconf.MISSING


def test_settings_that_are_paths_are_declared_as_such_and_are_no_part_of_the_run_key():
    paths = {setting.name for setting in run_settings() if setting.is_path}
    rows = {f"task.{role}_file" for role in ("train", "validation", "test")}
    assert paths == {"data_root", "backbone.path", "method.init"} | rows
    # `identify` replaces `method.init` by the content of the adapter.
    assert all(is_location(name) for name in paths - {"method.init"})


def test_choices_are_checked_where_they_are_declared():
    with_choices = [one for one in run_settings() if one.choices and not one.option]
    assert len(with_choices) >= 14
    for one in with_choices:
        layers = ["layers=variability"] if one.name.startswith("layers.") else []
        with pytest.raises(RequestError, match=f"{one.name}=nothing is not known"):
            load_config([*TINY, *layers, f"{one.name}=nothing"])


def test_the_list_of_settings_is_that_of_the_declarations(capsys):
    assert main(["list", "settings", "train", "--json"]) == 0
    rows = {row["setting"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["train.schedule"]["values"] == "linear, cosine, constant"
    assert (rows["train.epochs"]["default"], rows["train.epochs"]["values"]) == ("3", "int")
    assert rows["train.max_steps"]["default"] == "null"
    assert set(rows) == {one.name for one in run_settings() if one.name.startswith("train.")}
    assert main(["list", "settings", "lora", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["setting"] for row in rows] == ["method.r", "method.alpha", "method.dropout", "method.targets"]
    assert rows[3]["values"] == "list of str"
    assert main(["list", "settings"]) == 0
    assert "[query,value]" in capsys.readouterr().out.replace("\n", "")
    assert main(["list", "settings", "trian"]) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err
    assert main(["list", "tasks", "train"]) == 2


def test_help_shows_the_values_that_a_command_would_have():
    text = run_help(["--help", "method=coda", "train.epochs=7"])
    lines = text.splitlines()
    assert any(line.startswith("train.epochs=7 ") and "Passes over the training rows. (int)" in line for line in lines)
    assert any(line.startswith("method.attention=k2k ") for line in lines)
    assert any(line.startswith("train.learning_rate=0.00") for line in lines)
    assert "method.alpha=" not in text
    assert "$CONFIG" not in text


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("task.text_columns=text", "task.text_columns=[text]"),
        ("task.text_columns='a b'", "task.text_columns=['a b']"),
        ("method.targets=query", "method.targets=[query]"),
        ("task.labels=null", "task.labels=null"),
        ("task.text_columns=[a,b]", "task.text_columns=[a,b]"),
        ("task.text_columns=a,b", "task.text_columns=a,b"),
        ("task.name=x", "task.name=x"),
    ],
)
def test_one_value_is_a_list_of_one(given, taken):
    assert as_list(given) == taken


def test_a_list_of_one_reaches_the_config():
    assert load_config([*TINY, "method=lora", "method.targets=key"]).method.targets == ["key"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's folder of options."""
    # Restored afterwards, as --config-dir sets it.
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    folder = tmp_path / "own options"
    files = {
        "task/mine.yaml": "# petl-bench run task=mine\n# My rows.\ndefaults: [smoke, _self_]\nname: mine\n",
        "method/lora4.yaml": "defaults: [lora, _self_]\nr: 4\n",
        "study/small.yaml": "methods: {lora4: [], head: []}\ntasks: {mine: []}\nsettings: [backbone=tiny_bert]\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    return folder


def test_own_options_are_found_by_every_command(own, tmp_path, capsys):
    assert main(["--config-dir", str(own), "list", "tasks", "--json"]) == 0
    assert "mine" in [row["task"] for row in json.loads(capsys.readouterr().out)]
    assert main(["plan", f"--config-dir={own}", "task=mine", "method=lora4", "backbone=tiny_bert", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["method"] == "lora"
    runs = f"runs_dir={tmp_path / 'runs'}"
    assert main(["study", "small", runs, "--dry-run", "--json", "--config-dir", str(own)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    sweep = ["run", "-m", "task=mine", "method=lora4", "backbone=tiny_bert", "train.max_steps=1", runs, "--json"]
    assert main([*sweep, "measure.inference=false", "--config-dir", str(own)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["config"]["method"]["r"], record["protocol"]["task"]) == (4, "mine")


def test_without_the_folder_they_are_not_there(own, monkeypatch):
    monkeypatch.setenv(CONFIG_VARIABLE, str(own))
    assert "mine" in option_names("task")
    assert load_config(["task=mine"]).task.name == "mine"
    monkeypatch.delenv(CONFIG_VARIABLE)
    with pytest.raises(RequestError, match="task=mine is not known"):
        load_config(["task=mine"])


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("task/bad.yaml", "name: a\n  b: [\n", r"bad\.yaml, line 2: mapping values are not allowed"),
        ("task/mrpc.yaml", "name: mrpc\n", "there is an option task=mrpc already"),
        ("tasks/mine.yaml", "name: a\n", "no group: folder=tasks is not known. Did you mean 'task'"),
        ("hydra/launcher.yaml", "_target_: os.system\n", "folder=hydra is not known"),
        ("task/code.yaml", "a: [{_target_: os.system}]\n", "holds _target_"),
        ("task/list.yaml", "- a\n", "holds no settings"),
        ("task/alias.yaml", "a: &a [*a]\n", "alias stands inside of itself"),
    ],
)
def test_what_is_wrong_with_own_options_is_told(own, file, text, sentence, capsys):
    (own / file).parent.mkdir(exist_ok=True)
    (own / file).write_text(text)
    assert main(["list", "tasks", "--config-dir", str(own)]) == 2
    error = capsys.readouterr().err
    assert sentence.replace("\\", "") in error


def test_a_folder_that_is_none_is_told(own, capsys):
    assert main(["run", "--config-dir", str(own / "nowhere")]) == 2
    assert "nowhere (or PETL_BENCH_CONF) is no folder" in capsys.readouterr().err


def test_paths_in_a_study_are_relative_to_its_file(tmp_path, monkeypatch):
    folder = tmp_path / "my studies"
    (folder / "Ann's").mkdir(parents=True)
    (folder / "rows.csv").write_text("text,label\ngood,1\nbad,0\n")
    (folder / "mine.yaml").write_text(
        "methods: {head: [method.init=null], houlsby: [method=houlsby, method.init=bert]}\n"
        "tasks: {own: [task=custom, task.train_file=rows.csv], there: [task=custom, task.train_file=/rows.csv],\n"
        "        quoted: [task=custom, \"task.train_file='Ann\\\\'s/rows.csv'\"]}\n"
        "settings: [backbone.path='a model', task.text_columns=text]\n"
    )
    monkeypatch.chdir(folder)
    assert open_study("mine.yaml")[1].tasks["own"] == ["task=custom", "task.train_file=rows.csv"]
    monkeypatch.chdir(tmp_path)
    _, study = open_study("my studies/mine.yaml")
    assert load_config([*study.tasks["own"], study.settings[1]]).task.train_file == "my studies/rows.csv"
    assert study.tasks["there"][1] == "task.train_file=/rows.csv"
    assert load_config([*study.tasks["quoted"], study.settings[1]]).task.train_file == "my studies/Ann's/rows.csv"
    assert load_config([study.settings[0]]).backbone.path == "my studies/a model"
    assert study.methods["head"] == ["method.init=null"]


def test_the_documented_settings_are_the_declared_ones(capsys):
    assert main(["list", "settings", "--format", "md"]) == 0
    documented = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    assert documented.endswith(capsys.readouterr().out)
