"""A record, a study or an adapter from elsewhere is data: nothing in it is carried out, and none of it hangs a command."""

from __future__ import annotations

import json
import os

import pytest

from petl_bench import cli
from petl_bench.config import config_from_dict, load_config
from petl_bench.errors import RequestError
from petl_bench.records.store import find_records, read_json, read_record
from petl_bench.studies.definition import open_study
from petl_bench.studies.expand import cells, compose

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


class TestSizeIsBounded:
    def test_a_record_that_is_nested_too_deeply(self, tmp_path):
        for levels in (200, 900, 100_000):
            (tmp_path / "result.json").write_text('{"config":' + "[" * levels + "]" * levels + "}")
            with pytest.raises(ValueError, match="nested too deeply"):
                read_json(tmp_path / "result.json")

    def test_a_record_that_is_no_file_or_too_large(self, tmp_path):
        os.mkfifo(tmp_path / "result.json")
        _, unreadable = find_records([tmp_path])
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
            ("a: " + "[" * 50_000, "nested too deeply"),
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
