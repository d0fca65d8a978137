"""Configs: everything that is shipped composes; what is wrong is said in one sentence."""

from __future__ import annotations

import os
import shlex
import tomllib
from pathlib import Path

import pytest
import setuptools
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from composed import composed
from petl_bench import cli
from petl_bench.config import check, combinations, config_from_dict, load_config
from petl_bench.config_errors import explained
from petl_bench.errors import RequestError
from petl_bench.records.run_key import run_key

CONF = Path(__file__).parents[1] / "conf"
# Studies, and how they are executed, are no settings of a run: tests/studies.
NOT_OF_A_RUN = ("study", "executor")
# A file that begins with an underscore is what several options have in common, and no option.
# Tasks whose rows the user brings.
OWN_ROWS = ("custom", "tagging", "multilabel")
OPTIONS = sorted(
    f"{file.parent.name}={file.stem}"
    for file in CONF.glob("*/*.yaml")
    if file.stem not in ("ax", *OWN_ROWS) and not file.stem.startswith("_") and file.parent.name not in NOT_OF_A_RUN
)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_shipped_option_composes(option):
    group, _, name = option.partition("=")
    # A recipe holds settings for the tasks of its paper.
    needed = {"recipe": ["task=mrpc"], "backbone=hub": ["backbone.hub_id=some/model"]}
    config = load_config([option, *needed.get(group, []), *needed.get(option, [])])
    # The name of a task of FewCLUE ends with its split.
    expected = f"{name}_0" if name.startswith("fewclue_") else name
    assert getattr(getattr(config, group), "name", expected) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ["backbone=bert_base", "method=houlsby", "task=mrpc", "layers=top", "backbone.attention=eager"],
        ["task=smoke", "backbone=tiny_bert", "+backbone.architecture.hidden_dropout_prob=0.3", "method=prefix"],
    ],
)
def test_tests_that_compose_backbones_apart_get_the_same(overrides):
    assert composed(*overrides) == load_config(overrides)


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_shipped_option_begins_with_its_command(file):
    # Hydra wants to read first where a file's settings go.
    first = next(line for line in file.read_text().splitlines() if not line.startswith("# @package"))
    assert first.startswith("# ")
    assert ("petl-bench study" if file.parent.name in NOT_OF_A_RUN else "petl-bench run") in first


def test_interpolated_learning_rate_follows_the_method():
    assert load_config(["method=full"]).train.learning_rate == load_config(["method=full"]).method.default_learning_rate
    assert load_config(["method=lora", "train.learning_rate=0.5"]).train.learning_rate == 0.5


def test_a_record_config_reads_back_equal():
    config = load_config(
        ["method=peft", "+method.args.r=4", "layers=window", "layers.head=3", "layers.top=2", "task=mnli"]
    )
    assert config_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task=mrcp", "Did you mean 'mrpc'"),
        ("train.epochs=abc", "train.epochs=abc"),
        ("train.epoch=2", "Did you mean train.epochs"),
        ("method.rank=2", "Did you mean method.r"),
        ("method.args={r:1}", "+method.args.NAME=VALUE"),
        ("+train.seed=1", "train.seed"),
        ("train=[", "petl-bench run --help"),
    ],
)
def test_wrong_overrides_are_explained(override, words):
    with pytest.raises(RequestError) as raised:
        load_config(["method=peft", override] if "args" in override else [override])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=0", "train.batch_size=0"),
        ("train.accumulation=64", "train.accumulation=64"),
        ("train.schedule=liner", "Did you mean 'linear'"),
        ("train.learning_rate=-1", "train.learning_rate"),
        ("train.warmup_share=2", "train.warmup_share"),
        ("train.head_learning_rate=-1", "train.head_learning_rate"),
        ("train.learning_rate=inf", "finite"),
        ("train.weight_decay=-1", "train.weight_decay"),
        ("train.seed=-1", "train.seed"),
        ("task.data_seed=-1", "task.data_seed"),
        ("task.num_held_out_examples=0", "task.num_held_out_examples=0"),
        ("task.metric=f1", "task.metric=f1"),
        ("task.protocol=heldout", "Did you mean 'held_out'"),
        ("task.num_train_examples=0", "task.num_train_examples=0"),
        ("backbone.attention=flash", "backbone.attention=flash"),
        ("backbone.weights=rand", "backbone.weights=rand"),
        ("tracker.name=wand", "Did you mean 'wandb'"),
        *((f"task={name}", "task.train_file=FILE") for name in OWN_ROWS),
        ("task=ax", "train task=mnli"),
    ],
)
def test_settings_that_cannot_work_are_refused(override, words):
    with pytest.raises(RequestError, match=words.replace("=", "=")):
        load_config([override])


@pytest.mark.parametrize("kind", ["also_report", "also_submit"])
@pytest.mark.parametrize(
    "name", ["train", "selection", "report", "ood", "train_held_out", "train_a", "validation_matched", "test"]
)
def test_further_rows_do_not_take_the_place_of_the_tasks_own(kind, name):
    cfg = load_config(["task=mnli", "task.train_split=train_a", "task.test_split=test", "task.protocol=test"])
    splits = getattr(cfg.task, kind)
    splits["other"] = splits["mismatched"]
    check(cfg)
    splits[name] = splits["mismatched"]
    with pytest.raises(RequestError, match=rf"^task\.{kind}\.{name}: the task's own rows are called {name}: give"):
        check(cfg)
    # Its test split is none of its rows where the validation split is reported.
    cfg.task.protocol = "standard"
    if name == "test":
        check(cfg)


# A file's name in Latin-1, as Python reads it on a system of UTF-8.
LATIN = os.fsdecode(b"Stra\xdfe")


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("task.train_file", f"task.train_file='{LATIN}.csv'"),
        ("task.text_columns", f"task.text_columns=['{LATIN}']"),
        ("data_root", f"data_root='{LATIN}'"),
        ("backbone.architecture.x", f"+backbone.architecture.x='{LATIN}'"),
    ],
)
def test_bytes_that_are_no_utf8_are_refused_before_the_run(key, override):
    with pytest.raises(RequestError, match=r"'Stra\\udcdfe.*' holds bytes that are no UTF-8: rename") as raised:
        load_config(["task=custom", "task.train_file=x.csv", override])
    assert str(raised.value).startswith(f"{key}=")
    str(raised.value).encode()


def test_hydra_is_left_clean_after_loading():
    load_config()
    with pytest.raises(AssertionError, match="GlobalHydra is not initialized"):
        compose("config")


def test_a_setting_changes_this_config_alone():
    options = ["backbone=tiny_bert", "task=mrpc"]
    changed = load_config([*options, "task.labels=[no,yes]", "backbone.architecture.hidden_size=48", "force=true"])
    assert (changed.task.labels, changed.backbone.architecture["hidden_size"], changed.force) == (
        ["no", "yes"],
        48,
        True,
    )
    changed.task.labels.clear()
    changed.backbone.architecture.clear()
    plain = load_config(options)
    assert (len(plain.task.labels), plain.backbone.architecture["hidden_size"], plain.force) == (2, 32, False)


def test_several_values_are_left_to_sweeps():
    with pytest.raises(RequestError, match=r"train\.seed"):
        load_config(["train.seed=1,2"])


def test_every_package_folder_is_installed():
    root = Path(__file__).parents[1]
    found = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert found == {"where": ["src"], "namespaces": False}
    folders = {file.parent.relative_to(root / "src") for file in (root / "src").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"petl_bench.conf"}
    assert set(setuptools.find_packages(str(root / "src"))) == packages


@pytest.mark.parametrize(
    ("recipe", "task", "expected"),
    [
        # (length, epochs, batch, rate, alpha) of arXiv 2106.09685, table 9
        ("lora_roberta_base", "mnli", (512, 30, 16, 5e-4, 8)),
        ("lora_roberta_base", "cola", (512, 80, 32, 4e-4, 8)),
        ("lora_roberta_base", "stsb", (512, 40, 16, 4e-4, 8)),
        ("lora_roberta_large", "sst2", (128, 10, 4, 4e-4, 16)),
        ("lora_roberta_large", "rte", (512, 20, 8, 4e-4, 16)),
        ("lora_roberta_large_128", "stsb", (128, 10, 4, 2e-4, 16)),
    ],
)
def test_a_recipe_gives_a_papers_settings_by_task(recipe, task, expected):
    cfg = load_config([f"recipe={recipe}", f"task={task}"])
    train = cfg.train
    assert (cfg.task.max_length, train.epochs, train.batch_size, train.learning_rate, cfg.method.alpha) == expected
    assert (cfg.method.name, cfg.method.r, train.head_learning_rate) == ("lora", 8, None)
    assert recipe.startswith(f"lora_{cfg.backbone.name}")
    # The command line has the last word, and what a recipe gives is known by its values alone.
    other = load_config([f"recipe={recipe}", f"task={task}", "train.epochs=1", "method.r=4"])
    assert (other.train.epochs, other.method.r) == (1, 4)
    by_hand = cfg.to_dict() | {"recipe": {}}
    assert run_key(cfg.to_dict(), {}) == run_key(by_hand, {})


def test_a_recipe_without_the_task_names_those_it_has():
    with pytest.raises(RequestError, match=r"lora_roberta_base has no settings for this task.*Allowed: cola, mnli"):
        load_config(["recipe=lora_roberta_base"])


def test_layer_selection_brings_its_layer_plan_and_gives_way():
    assert load_config(["method=layer_selection"]).layers.name == "variability"
    assert load_config(["method=layer_selection", "layers=top"]).layers.name == "top"
    assert load_config(["method=lora"]).layers.name == "all"


@pytest.mark.parametrize(
    "value", ["a=b.csv", "a#b.csv", "it's.csv", "日本.csv", "a(1).csv", "~/b.csv", "'open.csv", "a,b.csv"]
)
def test_a_value_that_needs_quotation_marks_is_shown_with_them(value):
    with pytest.raises(RequestError, match=r"quotation marks|write a list") as refused:
        load_config(["task=custom", f"task.train_file={value}"])
    sentence, _, _ = str(refused.value).partition(". `petl-bench")
    (example,) = shlex.split(sentence.rpartition(" as ")[2].removeprefix("in ").rstrip("."))
    assert load_config(["task=custom", example]).task.train_file == value.strip("'")


def test_a_list_is_shown_with_quotation_marks_around_its_items():
    with pytest.raises(RequestError, match="quotation marks") as refused:
        load_config(["task=custom", "task.train_file=x", "task.text_columns=[a=b,文]"])
    (example,) = shlex.split(str(refused.value).partition(" as in ")[2].partition(". `petl-bench")[0])
    assert load_config(["task=custom", "task.train_file=x", example]).task.text_columns == ["a=b", "文"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=-689970", r"method=-689970 is not known\. Allowed: bitfit"),
        ("task=null", r"task=null is not known\. Allowed: afqmc"),
        ("=3", "A group takes the name of one of its options"),
        ("nonsense", "'nonsense' is no setting: write key=value"),
        ("train.epochs=five", r"train.epochs=five: it must be a whole number\."),
        ("train.seed=1.5", r"train.seed=1.5: it must be a whole number\."),
        ("force=perhaps", r"force=perhaps: it must be true or false\."),
        ("data=rows.csv", r"data=FILE is for run, choose and plan\. Here give task=custom task.train_file=FILE"),
    ],
)
def test_what_hydra_takes_for_no_setting_is_told_in_words(override, words):
    with pytest.raises(RequestError, match=words):
        load_config([override])


@pytest.mark.parametrize("options", [["-sc"], ["--resolve"], ["--shell-completion", "method=lora"]])
def test_hydras_options_without_what_they_need_are_wrong_requests(options, capsys):
    assert cli.main(["run", *options]) == 2
    err = capsys.readouterr().err
    assert "shows all groups and settings" in err
    assert "Error" not in err


def test_a_file_that_is_given_alone_is_taken_for_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my rows.csv").write_text("text,label\n")
    with pytest.raises(RequestError, match=r"is no setting: .* Did you mean 'data=my rows.csv'\?"):
        load_config(["my rows.csv"])


def test_a_list_with_spaces_is_shown_as_the_shell_takes_it():
    with pytest.raises(RequestError, match=r"write a list as 'task.text_columns=\[a b,c d\]', and one value as"):
        load_config(["task=custom", "task.train_file=x", "task.text_columns=a b,c d"])


def test_an_option_that_run_does_not_have_is_told(capsys):
    assert cli.main(["run", "task=smoke", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("petl-bench: run has no option --dry-run: it takes --force, --json, -m and")
    assert len(err.splitlines()) == 1


def test_what_is_wrong_with_every_run_of_a_sweep_is_told_once(capsys):
    assert cli.main(["run", "-m", "method=full,lora", "train.max_step=1"]) == 2
    assert capsys.readouterr().err.count("train.max_step is not a setting here") == 1


def test_errors_that_are_not_hydras_are_left_as_they_are():
    with pytest.raises(ValueError, match="ours"), explained([]):
        raise ValueError("ours")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=full,lora", "train.seed=0,1", "task=smoke"],
        ["train.seed=range(0,3)", "+backbone.architecture.x=a"],
        ["train.seed=choice(3,5)", "task.text_columns=[a,b],[c]"],
        ["task.name='a,b'", "method.r=8"],
    ],
)
def test_combinations_are_those_of_hydra(overrides):
    parsed = OverridesParser.create().parse_overrides(overrides)
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    assert combinations(overrides) == batch


def test_an_interval_is_no_list():
    with pytest.raises(RequestError, match=r"train.weight_decay=interval\(0,1\): -m takes values that are listed"):
        combinations(["train.weight_decay=interval(0,1)"])
