"""A record, a study or an adapter from elsewhere is data: it is neither carried out nor able to hang a command."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from random import Random

import pytest

from petl_bench import cli
from petl_bench.backbones.source import find_source
from petl_bench.config import config_from_dict, load_config
from petl_bench.errors import RequestError
from petl_bench.methods.peft import check_config
from petl_bench.methods.registry import Method, register
from petl_bench.records.schema import Record
from petl_bench.records.store import locate_records, read_json, read_record
from petl_bench.records.study_file import PlannedRun, StudyFile, read_study
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.studies.definition import open_study
from petl_bench.studies.expand import cells, compose
from petl_bench.tasks.load import load_task
from reports.made_records import made_record

# Labels that somebody's rows may hold, and that OmegaConf would replace or refuse.
LABELS = ["${oc.env:PETL_SECRET}", "${price}", "${", "\\${x}", "???", "{a: b}"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; gives its exit code and what it printed to both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETL_SECRET", "hunter2")

    def call(*words):
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


class TestNothingIsInterpolated:
    def test_strings_of_a_record_stay_as_they_are(self):
        config = load_config(["task=mrpc"])
        config.task.labels = LABELS
        config.data_root = "${oc.env:HOME}"
        assert config_from_dict(config.to_dict()) == config

    @pytest.mark.parametrize(
        ("group", "key", "value", "words"),
        [
            ("train", "epochs", "many", "config.train.epochs is 'many', not a whole number"),
            ("train", "speed", 1, "config.train.speed is not a setting of this version"),
            ("method", "rank", 4, "config.method.rank is not a setting of this version"),
            ("task", "text_columns", None, "config.task.text_columns is null, not a list"),
            ("task", "text_columns", [], "config.task.text_columns names no column"),
        ],
    )
    def test_what_does_not_fit_is_named(self, group, key, value, words):
        content = load_config(["task=mrpc"]).to_dict()
        content[group][key] = value
        with pytest.raises(RequestError, match=words):
            config_from_dict(content)

    def test_what_is_missing_is_named(self):
        content = load_config(["task=mrpc"]).to_dict()
        del content["task"]["text_columns"]
        with pytest.raises(RequestError, match=r"config\.task\.text_columns is missing"):
            config_from_dict(content)

    def test_labels_of_rows_are_predicted_as_they_are(self, command, tmp_path):
        rows = [{"text": f"row {label} {i}", "label": label} for i in range(8) for label in LABELS]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, _, err = command(
            *("run", "backbone=tiny_bert", "train.epochs=1", "task=custom", "task.train_file=rows.jsonl"),
            *("task.text_columns=[text]", "task.label_column=label", "measure.ledger=false", "measure.inference=false"),
        )
        assert code == 0, err
        (folder,) = (tmp_path / "runs").glob("custom-*")
        code, out, err = command("predict", folder, "--text", "row", "--json")
        assert code == 0, err
        assert set(json.loads(out)["probabilities"]) == set(LABELS)
        assert "hunter2" not in out + err

    def test_a_studys_texts_stay_as_they_are(self, tmp_path):
        (tmp_path / "mine.yaml").write_text(
            "description: costs ${price}, not ${\nmethods: {lora: }\ntasks: {demo: }\ndeviations: ['${oc.env:HOME}']\n"
        )
        _, study = open_study(str(tmp_path / "mine.yaml"))
        assert (study.description, study.deviations) == ("costs ${price}, not ${", ["${oc.env:HOME}"])

    @pytest.mark.parametrize("setting", ["task.label_column=${oc.env:PETL_SECRET}", "data_root=${runs_dir}"])
    def test_a_studys_settings_are_not_interpolated(self, setting, tmp_path, monkeypatch):
        monkeypatch.setenv("PETL_SECRET", "hunter2")
        (tmp_path / "mine.yaml").write_text(f"methods: {{lora: }}\ntasks: {{demo: }}\nsettings: ['{setting}']\n")
        _, study = open_study(str(tmp_path / "mine.yaml"))
        (cell,) = cells(study, [])
        with pytest.raises(RequestError, match=r"in a study \$\{...\} is not replaced") as caught:
            compose(cell, tmp_path)
        assert "hunter2" not in str(caught.value)


NO_NAMES = ["../up", "a/b", "/abs", "..", ".hidden", "", "x" * 101, "a\nb", "a\x1b[31mb", "back\\slash", "end "]


class TestNames:
    @pytest.mark.parametrize("name", NO_NAMES)
    def test_a_task_whose_name_is_no_folder(self, name):
        with pytest.raises(RequestError, match=r"task\.name=.* must be a name"):
            load_config([f'task.name="{name}"'])

    def test_nothing_is_written_for_one(self, command, tmp_path):
        code, _, err = command("run", "backbone=tiny_bert", "task.name=../up")
        assert (code, err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])

    @pytest.mark.parametrize("name", ["中文任务", "my task (v2)", "a:b", "x" * 100, "-dash"])
    def test_other_names_are_as_good_as_any(self, name):
        assert load_config([f'task.name="{name}"']).task.name == name

    @pytest.mark.parametrize(
        "key", ["task.submission", "task.subset", "task.train_split", "task.test_split", "backbone.name"]
    )
    def test_a_record_names_nothing_outside(self, key):
        content = load_config(["task=mnli"]).to_dict()
        group, _, name = key.partition(".")
        content[group][name] = "../../up"
        with pytest.raises(RequestError, match=re.escape(f"{key}='../../up' must be a name")):
            config_from_dict(content)

    def test_nor_do_its_other_splits(self):
        content = load_config(["task=mnli"]).to_dict()
        content["task"]["also_submit"]["ax"]["submission"] = "/tmp/AX"
        with pytest.raises(RequestError, match=r"task\.also_submit\.ax\.submission='/tmp/AX' must be a name"):
            config_from_dict(content)

    @pytest.mark.parametrize(
        ("source", "dataset"),
        [
            *(("package", name) for name in ("../../x", "a/b", "/abs", "..")),
            *(("hub", name) for name in ("./x", "../x", "/x", "~/x/y", "a/b/c", "a/..", "a/", "")),
        ],
    )
    def test_nor_does_its_data_set_lie_elsewhere(self, source, dataset):
        words = rf"task\.dataset={re.escape(repr(dataset))} must be a name"
        with pytest.raises(RequestError, match=words):
            load_config(["task=mrpc", f"task.source={source}", f'task.dataset="{dataset}"'])
        content = load_config(["task=mrpc"]).to_dict()
        content["task"] |= {"source": source, "dataset": dataset}
        with pytest.raises(RequestError, match=words):
            config_from_dict(content)

    def test_a_folder_in_the_working_directory_is_not_the_hub(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "some" / "rows").mkdir(parents=True)
        (tmp_path / "some" / "rows" / "train.csv").write_text("sentence1,sentence2,label\na,b,0\nc,d,1\n")
        task = load_config(["task=mrpc", "task.dataset=some/rows", "task.subset=null"]).task
        with pytest.raises(RequestError, match=r"some/rows would be read from the folder of this name here, not from"):
            load_task(task, None)

    @pytest.mark.parametrize("seed", [-1, 2**32])
    def test_nor_is_its_seed_one_that_none_takes(self, seed):
        content = load_config(["task=mnli"]).to_dict()
        content["train"]["seed"] = seed
        with pytest.raises(RequestError, match=rf"config\.train\.seed={seed} must lie in 0\.\.4294967295"):
            config_from_dict(content)

    def test_names_that_are_too_long_together(self, command, tmp_path):
        (tmp_path / ("b" * 200)).mkdir()
        (tmp_path / ("b" * 200) / "config.json").write_text("{}")
        code, _, err = command("run", "backbone=tiny_bert", f"backbone.path={'b' * 200}", f"task.name={'t' * 90}")
        assert code == 2
        assert "too long for a folder" in err
        assert not (tmp_path / "runs").exists()

    def test_a_runs_key_is_a_name(self):
        record = made_record("lora", "mrpc", 0).to_dict()
        with pytest.raises(ValueError, match=r"run_key='x/\.\./\.\./up' must be a name"):
            Record.from_dict(record | {"run_key": "x/../../up"})

    @pytest.mark.parametrize("key", ["folder", "key"])
    def test_a_studys_runs_lie_in_its_folder(self, key, tmp_path):
        run = dataclasses.replace(PlannedRun("lora", "demo", 0, "k", "f", []), **{key: "../up"})
        StudyFile("mine", "", ["lora"], ["demo"], [0], [run]).write(tmp_path)
        with pytest.raises(RequestError, match=rf"runs\[0\].{key}='../up' must be a name"):
            read_study(tmp_path)

    def test_a_study_has_the_name_of_a_folder(self, tmp_path):
        (tmp_path / "...yaml").write_text("methods: {lora: }\ntasks: {demo: }")
        with pytest.raises(RequestError, match="must be a name"):
            open_study(str(tmp_path / "...yaml"))

    def test_a_plugins_method_has_one(self):
        with pytest.raises(RequestError, match="must be a name"):
            register(Method(name="../up", summary="", origin=""))


class TestPackages:
    @pytest.mark.parametrize("package", ["evil.sub", "evil", "../evil", ""])
    def test_no_code_of_the_working_directory_is_run(self, package, tmp_path, monkeypatch):
        for folder in (tmp_path / "evil", tmp_path / "evil" / "sub"):
            folder.mkdir()
            (folder / "__init__.py").write_text("raise SystemExit('it was run')")
        monkeypatch.syspath_prepend(str(tmp_path))
        backbone = load_config([f"backbone.package={package}", "backbone.hub_id=null"]).backbone
        with pytest.raises(RequestError, match="has no hub_id"):
            find_source(backbone)

    def test_the_folder_lies_in_the_package(self, minilm):
        backbone = load_config(["backbone.package_folder=../numpy"]).backbone
        with pytest.raises(RequestError, match=r"backbone\.package_folder=\.\./numpy"):
            find_source(backbone)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run with LoRA on a random backbone."""
    runs = tmp_path_factory.mktemp("trained")
    cfg = load_config(
        [
            *("task=smoke", "backbone=tiny_bert", "method=peft", "method.type=LORA", "train.epochs=1"),
            "task.num_train_examples=16",
            *("train.batch_size=16", "measure.ledger=false", "measure.inference=false", f"runs_dir={runs}"),
        ]
    )
    run(cfg)
    return identify(cfg).folder


HANGS = r"((\w+\.?)+)+!"


class TestAdapters:
    @pytest.mark.parametrize(
        ("setting", "value", "words"),
        [
            ("target_modules", HANGS, "takes too long"),
            ("exclude_modules", HANGS, "takes too long"),
            ("modules_to_save", ["classifier", HANGS], "takes too long"),
            ("rank_pattern", {HANGS: 8}, "takes too long"),
            ("layers_pattern", [HANGS], "takes too long"),
            ("target_modules", "(", "is no regular expression"),
            ("target_modules", "x" * 10_000 + "{4294967296}", "is no regular expression"),
            ("megatron_config", {"a": 1}, "imports a package"),
            ("peft_type", "NOTHING", "cannot be read"),
            ("r", {"deep": [[[[]]]]}, "cannot be read"),
        ],
    )
    def test_an_adapters_config_is_checked(self, setting, value, words, trained, tmp_path, command, monkeypatch):
        monkeypatch.setattr("petl_bench.methods.peft._MATCH_SECONDS", 1.0)
        shutil.copytree(trained, tmp_path / "run")
        file = tmp_path / "run" / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {setting: value, "megatron_core": "evil"}))
        # Whoever changes the files changes their hashes.
        record = tmp_path / "run" / "result.json"
        content = json.loads(record.read_text()) | {"stored_files": None}
        del content["content_sha256"]
        record.write_text(json.dumps(content))
        code, out, err = command("predict", tmp_path / "run", "--text", "a")
        assert (code in (1, 2), out, err.count("\n")) == (True, "", 1)
        assert words in err

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            (f"+method.args.target_modules='{HANGS}'", "takes too long"),
            ("+method.args.target_modules='('", "is no regular expression"),
            ("+method.args.megatron_config={a: 1}", "imports a package"),
        ],
    )
    def test_so_are_the_arguments_of_a_request(self, setting, words, command, monkeypatch):
        monkeypatch.setattr("petl_bench.methods.peft._MATCH_SECONDS", 1.0)
        code, _, err = command("run", "backbone=tiny_bert", "method=peft", "method.type=LORA", setting)
        assert (code, words in err) == (2, True)

    def test_expressions_of_the_usual_kinds_pass(self):
        names = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(24)]
        for expression in (r".*\.(query|value)", r"bert\.encoder\.layer\.(0|1|2)\..*query$", ".*layer.*self.*query.*"):
            check_config({"target_modules": expression, "rank_pattern": {r".*\.query": 4}}, names, "here")


class TestSizeIsBounded:
    def test_a_record_that_is_nested_too_deeply(self, tmp_path):
        for levels in (200, 900, 100_000):
            (tmp_path / "result.json").write_text('{"config":' + "[" * levels + "]" * levels + "}")
            with pytest.raises(ValueError, match="nested too deeply"):
                read_json(tmp_path / "result.json")

    def test_a_record_that_is_no_file_or_too_large(self, tmp_path):
        os.mkfifo(tmp_path / "result.json")
        _, unreadable = locate_records([tmp_path])
        assert "it is no regular file" in unreadable[0]
        (tmp_path / "result.json").unlink()
        with (tmp_path / "result.json").open("wb") as stream:
            stream.truncate(2**40)
        with pytest.raises(ValueError, match="larger than 64 MiB"):
            read_record(tmp_path / "result.json")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30)), "too many"),
            ("a: " + "[" * 900 + "]" * 900, "nested too deeply"),
            ("a: " + "[" * 5_000, "nested too deeply"),
            ("a: &a [*a]", "inside of itself"),
            ("a: 2020-01-01\nb: [", "line 2"),
            ("methods: !!python/object/apply:os.system [ls]", "python/object"),
        ],
    )
    def test_a_study_that_is_too_much(self, text, words, tmp_path):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(RequestError, match=words) as caught:
            open_study(str(tmp_path / "mine.yaml"))
        assert "mine.yaml" in str(caught.value)

    def test_numbers_and_dates_of_a_study_mean_what_they_look_like(self, tmp_path):
        (tmp_path / "mine.yaml").write_text(
            "description: 2020-01-01\nmethods: {lora: &none }\ntasks: {demo: *none}\n"
            "learning_rates: {lora: [1e-3, 5E-4, 2]}\n"
        )
        _, study = open_study(str(tmp_path / "mine.yaml"))
        assert (study.description, study.learning_rates) == ("2020-01-01", {"lora": [1e-3, 5e-4, 2.0]})


# Keys of requests with values of all kinds, as users and scripts mistype them.
KEYS = [
    "method", "task", "backbone", "layers", "train", "tracker", "recipe", "task.name", "task.labels",
    "task.text_columns", "task.max_length", "task.metrics", "task.train_file", "train.seed", "train.epochs",
    "train.learning_rate", "train.precision", "train.cache", "method.r", "backbone.path", "backbone.weights",
    "layers.top", "runs_dir", "data_root", "force", "measure.ledger", "hydra.verbose", "hydra.run.dir",
    "hydra.job.name", "+method.args.r", "+x", "~task", "~train.seed", "++train.speed", "task@x", "executor",
    "executor.workers", "seeds", "methods", "",
]  # fmt: skip
VALUES = [
    "", "0", "-1", "1", "1e400", "nan", "null", "true", "lora", "mrpc", "tiny_bert", "a/../b", "..", "/proc/x", "~",
    "[]", "[a", "[a,a]", "{a: 1}", "{a", "'", '"', "a=b", "a,b", "${x}", "${oc.env:NOPE}", "${", "???", "\\",
    "\x1b[31m", "\0", "é", "\udcff", "x" * 300, "9" * 5000, "[" * 200, "range(0,3)", "choice(1,2)", "a b", "<script>",
    "%s", "-689970", "1.5",
]  # fmt: skip


def random_request(random):
    words = [f"{random.choice(KEYS)}={random.choice(VALUES)}" for _ in range(random.randint(1, 3))]
    if random.random() < 0.2:
        words.append(
            random.choice(["-m", "--cfg", "-sc", "--info", "--json", "--nope", "-", "--package", "--force", ""])
        )
    name = random.choice(["run", "run", "run", "plan", "study"])
    return [name, *({"study": ["demo", "--dry-run"]}.get(name, [])), "backbone=tiny_bert", *words]


def damaged(random, content):
    """The content with a random value in a random place."""
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(content)
    node, key = random.choice(places)
    node[key] = random.choice(
        [None, -1, 1e300, True, "", "${x}", "../up", "\x1b[2J", "x" * 10**5, [], {}, {"a": [[]]}, [1], "[red]"]
    )
    return content


def outcome(words, command):
    """Why the outcome of a command is neither right nor a sentence; empty if it is."""
    try:
        code, out, err = command(*words)
    except Exception as error:
        return repr(error)
    told = "shows where" not in err and "Traceback" not in err and code in (0, 1, 2)
    return "" if told and (code == 0 or err.strip() or out) else f"{code}: {err[-300:]}"


def test_random_requests_end_in_a_sentence(command, monkeypatch):
    def stop(cfg):
        raise RequestError("it would run")

    monkeypatch.setattr("petl_bench.run.run.run", stop)
    monkeypatch.setattr(
        "petl_bench.estimate.plan.estimate_all", lambda requests: [RequestError("counted") for _ in requests]
    )
    monkeypatch.setattr(
        "petl_bench.studies.study.estimate_all", lambda requests: [RequestError("counted") for _ in requests]
    )
    random = Random(int(os.environ.get("PETL_FUZZ_SEED", "0")))
    wrong = {}
    for _ in range(int(os.environ.get("PETL_FUZZ_REQUESTS", "15"))):
        words = random_request(random)
        if fault := outcome(words, command):
            wrong[" ".join(words)[:300]] = fault
    assert not wrong


def test_random_records_are_reported_or_named(command, tmp_path):
    random = Random(int(os.environ.get("PETL_FUZZ_SEED", "0")))
    folder = tmp_path / "runs"
    wrong = {}
    for number in range(int(os.environ.get("PETL_FUZZ_RECORDS", "20"))):
        for seed in range(3):
            (folder / str(seed)).mkdir(parents=True, exist_ok=True)
            content = made_record("lora" if seed else "full", "mrpc", seed).to_dict()
            file = folder / str(seed) / "result.json"
            file.write_text(json.dumps(content if seed else damaged(random, content)))
        form = random.choice(["table", "md", "latex", "csv", "json"])
        for words in (["report", folder, "--format", form], ["predict", folder / "0", "--text", "a"]):
            if fault := outcome(words, command):
                wrong[f"{number} {words[0]} {form}"] = fault
    assert not wrong
