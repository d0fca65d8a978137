"""The dashboard and the sweep ask only for what a tracker writes."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from petl_bench.cli import main
from petl_bench.config import load_config
from petl_bench.records.study_file import StudyFile
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.trackers.dashboard import SECTIONS, Place, build_report, build_workspace, spec_of
from trackers.wandb_files import read_offline

SWEEP = Path(__file__).parents[2] / "scripts" / "wandb_sweep.yaml"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """What W&B got of a real run with all its measurements."""
    settings = ["task=smoke", "backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=1", "tracker=wandb"]
    cfg = load_config([*settings, f"runs_dir={tmp_path_factory.mktemp('runs')}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for name in ("WANDB_PROJECT", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        run(cfg)
    (file,) = identify(cfg).folder.glob("wandb/offline-run-*/*.wandb")
    return read_offline(file)


@pytest.fixture
def spec(monkeypatch):
    """Workspace and report as W&B would keep them; that nothing is sent is part of the test."""
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    import wandb

    def asked(*_, **__):
        raise AssertionError("W&B was asked")

    monkeypatch.setattr(wandb, "Api", asked)
    place = Place("somebody", "petl_bench", "a-study")
    return {"workspace": spec_of(build_workspace(place)), "report": spec_of(build_report(place))}


def panels(spec):
    """Every panel of a spec, wherever it hangs."""
    if isinstance(spec, dict):
        if "viewType" in spec:
            yield spec
        spec = list(spec.values())
    if isinstance(spec, list):
        for item in spec:
            yield from panels(item)


def asked_for(panel):
    """The keys that a panel shows: of results or history, and of settings."""
    config = panel["config"]
    named = [*config.get("metrics", []), *(column["accessor"] for column in config.get("columns", []))]
    named += [config[axis] for axis in ("xAxis", "yAxis") if axis in config]
    keys = {name.removeprefix("summary:") for name in named if not name.startswith("config:")}
    return keys, {name.removeprefix("config:") for name in named if name.startswith("config:")}


@pytest.mark.parametrize("built", ["workspace", "report"])
def test_every_key_of_a_panel_is_written_by_the_tracker(built, spec, mirror):
    shown = list(panels(spec[built]))
    assert Counter(panel["viewType"] for panel in shown) == {
        "Bar Chart": 6,
        "Run History Line Plot": 2,
        "Scatter Plot": 2,
        "Parallel Coordinates Plot": 1,
        "Run Comparer": 1,
    }
    history = {key for point in mirror.points for key in point}
    for panel in shown:
        keys, settings = asked_for(panel)
        assert keys <= (history if "Line Plot" in panel["viewType"] else set(mirror.summary)), panel
        for path in settings:
            first, value, *rest = path.split(".")
            assert value == "value"
            found = mirror.config[first]
            for name in rest:
                found = found[name]
            assert isinstance(found, float)


def test_a_workspace_has_its_sections_columns_and_filter(spec, mirror):
    section = spec["workspace"]["spec"]["section"]
    titles = [item["name"] for item in section["panelBankConfig"]["sections"]]
    assert titles == [section.title for section in SECTIONS]
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "jobType"}]
    assert runs["filters"]["filters"][0]["key"] == {"section": "config", "name": "study"}
    assert runs["filters"]["filters"][0]["value"] == "a-study"
    columns = {name.removeprefix("summary:") for name in runs["runFeed"]["columnOrder"] if name.startswith("summary:")}
    assert columns
    assert columns <= set(mirror.summary)
    assert section["settings"]["xAxis"] == "step"
    assert all("step" in point for point in mirror.points)


def test_a_report_groups_every_run_set_by_method(spec):
    grids = [block for block in spec["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(SECTIONS)
    for grid in grids:
        (runs,) = grid["metadata"]["runSets"]
        assert runs["grouping"] == [{"section": "run", "name": "jobType"}]
        assert runs["filters"]["filters"][0]["value"] == "a-study"


def test_the_command_prints_what_it_would_save(capsys, tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    StudyFile("my-study", "", [], [], [], []).write(tmp_path)
    assert main(["dashboard", str(tmp_path), "--project", "mine"]) == 0
    text = capsys.readouterr().out
    assert "study my-study in project mine" in text
    assert "score against trainable parameters (scatter): params/trainable, score" in text
    assert main(["dashboard", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["workspace"]["project"] == "petl_bench"
    assert printed["workspace"]["spec"]["section"]["runSets"][0]["filters"]["filters"] == []


def test_a_folder_without_a_study_is_refused(capsys, tmp_path):
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    assert main(["dashboard", str(tmp_path)]) == 2
    assert "study.json" in capsys.readouterr().err


def test_saving_without_a_login_names_the_way_out(capsys, tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for words in (["--save"], ["--save", "--entity", "somebody"]):
        assert main(["dashboard", *words]) == 1
        assert "wandb login" in capsys.readouterr().err


def test_help_loads_no_wandb():
    script = "import sys, contextlib; from petl_bench.cli import main\n"
    script += "with contextlib.suppress(SystemExit): main(['--help'])\n"
    script += "sys.exit(bool({'wandb', 'wandb_workspaces', 'filelock'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL).returncode == 0


def test_the_sweep_runs_what_it_says(mirror, tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(SWEEP.read_text())
    assert sweep["metric"]["name"] in mirror.summary
    assert sweep["metric"]["goal"] == "maximize"
    parameters = sweep["parameters"]
    values = [item["values"] if "values" in item else [item["value"]] for item in parameters.values()]
    combinations = list(itertools.product(*values))
    runs = set()
    for combination in [combinations[0], combinations[len(combinations) // 2], combinations[-1]]:
        given = dict(zip(parameters, combination, strict=True))
        args = create_sweep_command_args({"args": {name: {"value": value} for name, value in given.items()}})
        words = []
        for word in create_sweep_command(list(sweep["command"])):
            macro = re.fullmatch(r"\$\{(\w+)\}", word)
            words += args[macro[1]] if macro else [word]
        assert words[:2] == ["petl-bench", "run"]
        words = ["force=true" if word == "--force" else word for word in words[2:]]
        cfg = load_config([*words, f"runs_dir={tmp_path}"])
        assert (cfg.tracker.name, cfg.force) == ("wandb", True)
        assert (cfg.method.name, cfg.task.name) == (given["method"], given["task"])
        assert (cfg.train.learning_rate, cfg.train.seed) == (given["train.learning_rate"], given["train.seed"])
        runs.add(identify(cfg).key)
    assert len(runs) == 3
