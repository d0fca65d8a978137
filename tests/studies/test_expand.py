"""Studies become runs: settings in their order, keys, requests, files, what is refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.records.study_file import PublishedRow, read_study
from petl_bench.run.lifecycle import identify
from petl_bench.settings import as_setting
from petl_bench.studies.definition import StudyConfig, open_study, parse_request, study_names
from petl_bench.studies.expand import StudyCell, basis_is_current, cells, compose, expand, last_of_each_key
from petl_bench.studies.study import keep, prepare
from studies.small_study import SMALL


def overrides_of(study, method, task, *given):
    return next(cell.overrides for cell in cells(study, list(given)) if (cell.method, cell.task) == (method, task))


def test_settings_come_from_the_general_to_the_particular():
    assert overrides_of(SMALL, "lora", "demo") == ["backbone=tiny_bert", "train.epochs=1", "method=lora", "task=demo"]
    assert overrides_of(SMALL, "lora", "few") == [
        "backbone=tiny_bert", "method=lora", "task=demo", "task.num_train_examples=20", "train.epochs=9", "method.r=2",
    ]  # fmt: skip
    assert "train.epochs=9" not in overrides_of(SMALL, "head_pooler", "few")
    assert overrides_of(SMALL, "lora", "few", "train.epochs=5", "backbone=minilm")[-2:] == [
        "train.epochs=5",
        "backbone=minilm",
    ]


def test_of_overrides_with_the_same_key_the_last_is_kept():
    assert last_of_each_key(["a=1", "+b.c=2", "a=3", "++b.c=4"]) == ["a=3", "++b.c=4"]


def test_every_run_has_the_key_that_run_would_give_it(tmp_path):
    file, _ = expand("small", SMALL, [], tmp_path)
    assert len(file.runs) == 8
    assert len({run.key for run in file.runs}) == 8
    for run in file.runs:
        cfg = load_config([*run.overrides, f"runs_dir={tmp_path}"])
        assert identify(cfg).key == run.key
        assert identify(cfg).folder == tmp_path / run.folder
    assert {run.seed for run in file.runs} == {3, 4}


def test_two_names_for_one_run_are_refused(tmp_path):
    twice = dataclasses.replace(SMALL, methods={"lora": [], "again": ["method=lora"]}, cells=[])
    with pytest.raises(RequestError, match="again on demo with seed 3 is the same run as lora on demo"):
        expand("small", twice, [], tmp_path)


def test_what_a_study_rests_on_is_noticed(tmp_path, monkeypatch):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "a good one,1\na bad one,0\n" * 8)
    custom = dataclasses.replace(
        SMALL,
        methods={"lora": []},
        cells=[],
        tasks={
            "mine": ["task=custom", f"task.train_file={rows}", "task.text_columns=[text]", "task.label_column=label"]
        },
    )
    _, basis = expand("small", custom, [], tmp_path)
    assert basis_is_current(basis, custom, [])
    assert not basis_is_current(basis, custom, ["train.epochs=2"])
    assert not basis_is_current(basis, dataclasses.replace(custom, seeds=[1]), [])
    assert not basis_is_current({}, custom, [])
    os.utime(rows, (1, 1))
    assert not basis_is_current(basis, custom, [])
    _, basis = expand("small", custom, [], tmp_path)
    rows.write_text(rows.read_text().replace("good", "mean"))
    os.utime(rows, (1, 1))
    assert not basis_is_current(basis, custom, [])


def test_a_kept_study_is_not_expanded_again(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text("methods: {lora: []}\ntasks: {demo: []}\nsettings: [backbone=tiny_bert]\n")
    request = parse_request([f"runs_dir={tmp_path / 'runs'}"])
    study = prepare(str(file), request)
    assert not (tmp_path / "runs").exists()
    keep(study)
    monkeypatch.setattr("petl_bench.studies.study.expand", None)
    assert prepare(str(file), request).file == read_study(tmp_path / "runs") == study.file


def test_what_the_command_line_sets_is_a_deviation(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("methods: {lora: []}\ntasks: {demo: []}\nseeds: [0, 1]\ndeviations: [MiniLM]\n")
    kept = [f"runs_dir={tmp_path}", "data_root=/data", "tracker=wandb", "train.save_weights=false", "methods=lora"]
    # None of these changes a score.
    assert prepare(str(file), parse_request([*kept, "seeds=0,1"])).file.deviations == ["MiniLM"]
    given = ["backbone=tiny_bert", "train.epochs=1", "recipe=lora_paper", "seeds=0"]
    assert prepare(str(file), parse_request([*kept, *given[:2], *given[3:]])).file.deviations == [
        "MiniLM",
        "set on the command line: backbone=tiny_bert, train.epochs=1, seeds=0",
    ]
    assert parse_request(given).departures(StudyConfig()) == given[:3]


@pytest.mark.parametrize(
    "tried", ["learning_rates: {lora: [1.0e-4, 1.0e-3]}", "search: {trials: 4}\nsettings: [task.protocol=held_out]"]
)
def test_a_study_can_be_made_with_the_methods_own_settings(tmp_path, tried):
    file = tmp_path / "mine.yaml"
    file.write_text(f"methods: {{lora: []}}\ntasks: {{demo: []}}\n{tried}\n")
    request = parse_request([f"runs_dir={tmp_path / 'runs'}", "backbone=tiny_bert"])
    assert any(run.is_trial for run in prepare(str(file), request).runs)
    own = parse_request([f"runs_dir={tmp_path / 'runs'}", "backbone=tiny_bert", "search=none"])
    study = prepare(str(file), own)
    assert [(run.is_trial, run.seed) for run in study.runs] == [(False, 0)]
    assert study.file.deviations == ["set on the command line: backbone=tiny_bert, search=none"]
    with pytest.raises(RequestError, match="search=tpe: only none"):
        parse_request(["search=tpe"])


def test_a_basis_of_other_runs_is_not_believed(tmp_path):
    """As a process leaves it that is killed between two writes, or another command with other seeds."""
    file = tmp_path / "mine.yaml"
    file.write_text("methods: {lora: []}\ntasks: {demo: []}\nsettings: [backbone=tiny_bert]\n")

    def seeds(*words):
        study = prepare(str(file), parse_request([f"runs_dir={tmp_path / 'runs'}", *words]))
        return study, [run.seed for run in study.runs]

    first, _ = seeds("seeds=0")
    keep(first)
    basis = first.folder.read_basis()
    keep(seeds("seeds=5,6")[0])
    first.folder.write_basis(basis)
    assert seeds("seeds=0")[1] == [0]
    for broken in ("[]", "null", "{", '{"fingerprint": 1}'):
        (first.folder.private / "basis.json").write_text(broken)
        assert seeds("seeds=0")[1] == [0]
    (tmp_path / "runs" / "study.json").write_text("{")
    assert seeds("seeds=0")[1] == [0]


def test_a_name_with_an_escaped_sign_is_read_as_it_is():
    """As `choose` writes the column of a user's file."""
    words = [
        "task=custom",
        "task.name=tickets",
        "task.train_file=t.csv",
        "task.text_columns=[text]",
        "backbone=tiny_bert",
    ]
    for name in ("a ${x}", "${oc.env:HOME}", "a\\${x}"):
        cell = StudyCell("head", "tickets", [*words, as_setting("task.label_column", name)], {})
        assert compose(cell, Path("runs")).task.label_column == name


class TestRequests:
    def test_overrides_are_sorted(self):
        request = parse_request(
            ["methods=lora,head", "tasks=[demo]", "seeds=1,2", "runs_dir=x", "executor=ray", "executor.workers=3", "a=1"]  # noqa: E501
        )  # fmt: skip
        assert (request.methods, request.tasks, request.seeds, request.runs_dir) == (
            ["lora", "head"],
            ["demo"],
            [1, 2],
            "x",
        )
        assert (request.executor.name, request.executor.workers) == ("ray", 3)
        assert request.overrides == ["a=1"]

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("seeds=a", "seeds=a must be whole numbers"),
            ("seeds=1,1", "each once"),
            ("method=lora", "narrow it with methods="),
            ("train.seed=1", "seeds="),
            ("nonsense", "nonsense: a setting is key=value"),
            ("executor=slrum", "Did you mean 'slurm'"),
            ("executor.workers=0", "executor.workers=0 must be at least 1"),
            ("executor.nothere=1", "nothere"),
            ("executor.workers=many", "workers"),
            ("methods=", "methods= names none"),
            ("seeds=-1", "in 0..4294967295"),
            ("force=true", "delete the folders"),
        ],
    )
    def test_what_does_not_fit_is_said(self, word, message):
        with pytest.raises(RequestError, match=message.replace("(", r"\(")):
            parse_request([word])

    def test_only_what_is_asked_for_runs_and_all_is_kept(self, tmp_path):
        request = parse_request(["methods=lora", f"runs_dir={tmp_path}"])
        file, _ = expand("small", SMALL, [], tmp_path)
        assert {run.method for run in request.narrowed(file.runs, SMALL)} == {"lora"}
        with pytest.raises(RequestError, match="Did you mean 'lora'"):
            parse_request(["methods=lra"]).narrowed(file.runs, SMALL)


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("methods: {}\ntasks: {demo: []}", "needs at least one"),
            ("methods: {lora: []}\ntasks: {demo: []}\nsede: [1]", "sede"),
            ("", "needs at least one"),
            ("methods: {lora: []}\ntasks: {demo: []}\nseeds: [0, 0]", "each once"),
            ("methods: {lora: []}\ntasks: {demo: []}\nseeds: [-1]", "in 0..4294967295"),
            ("methods: {lora: []}\ntasks: {demo: []}\nmethods: {full: []}", "is no study|duplicate"),
            ('methods: {"lo\\nra": []}\ntasks: {demo: []}', "is no name that a table can show"),
            (
                "methods: {lora: []}\ntasks: {demo: []}\nclaims: [{claim: A, source: B, test: {kind: bettter}}]",
                "Did you mean 'better'",
            ),
            (
                "methods: {lora: []}\ntasks: {demo: []}\npublished: [{row: A, source: B, cells: {demmo: [1]}, why: x}]",
                "demmo is none of its tasks",
            ),
            (
                "methods: {lora: []}\ntasks: {demo: []}\npublished: [{row: A, source: B, cells: {demo: []}, why: x}]",
                "a cell is empty",
            ),
            ("methods: {lora: [}", "line 1: expected the node content"),
            ("methods: {lora: []}\ntasks: {demo: []}\ncells: [{methods: [lra]}]", "lra is none of its methods: lora"),
            ("methods: {lora: []}\ntasks: {demo: []}\nseeds: [x]", "seeds"),
            (
                "methods: {lora: []}\ntasks: {demo: []}\npublished: [{row: A, source: B, cells: {demo: [1.0]}}]",
                "say why it is not comparable",
            ),
        ],
    )  # fmt: skip
    def test_mistakes_name_the_file(self, text, message, tmp_path):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(RequestError, match=message) as caught:
            open_study(str(tmp_path / "mine.yaml"))
        assert "mine.yaml" in str(caught.value)

    def test_what_is_meant_is_taken(self, tmp_path):
        (tmp_path / "mine.yaml").write_text(
            "methods: {lora: }\ntasks: {demo: }\nlearning_rates: {lora: [1]}\n"
            "published: [{row: A, source: B, cells: {demo: [85, 1]}, why: x}]"
        )
        _, study = open_study(str(tmp_path / "mine.yaml"))
        assert (study.methods, study.tasks) == ({"lora": []}, {"demo": []})
        assert study.learning_rates == {"lora": [1.0]}
        assert study.published[0].cells == {"demo": [85.0, 1.0]}

    def test_unknown_names_are_told_with_the_nearest(self):
        with pytest.raises(RequestError, match="Did you mean low_resource"):
            open_study("low_resorce")
        with pytest.raises(RequestError, match=r"nothere\.yaml is not there: give the path"):
            open_study("nothere.yaml")

    @pytest.mark.parametrize("name", study_names())
    def test_what_ships_opens(self, name):
        assert open_study(name)[0] == name

    def test_published_rows_survive_the_file(self, tmp_path):
        row = PublishedRow("LoRA", "a paper, table 2", {"demo": [90.2, 0.3]}, method="lora", comparable=True)
        file, _ = expand("small", dataclasses.replace(SMALL, published=[row]), [], tmp_path)
        file.write(tmp_path)
        assert read_study(tmp_path) == file

    def test_a_newer_or_broken_file_is_said(self, tmp_path):
        file, _ = expand("small", SMALL, [], tmp_path)
        dataclasses.replace(file, version=99).write(tmp_path)
        with pytest.raises(RequestError, match="newer than this program"):
            read_study(tmp_path)
        (tmp_path / "study.json").write_text("{")
        with pytest.raises(RequestError, match="cannot be read"):
            read_study(tmp_path)
