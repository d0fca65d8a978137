"""The search of a study: what is drawn, who is asked for the next trial, which settings are taken, what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.records.schema import HistoryEntry, Record, RunProtocol
from petl_bench.records.study_file import PlannedRun, read_study
from petl_bench.studies.definition import StudyConfig, open_study
from petl_bench.studies.expand import expand, grow
from petl_bench.studies.folder import StudyFolder, choose_settings
from petl_bench.studies.search import SearchConfig, default_space, draw

RATE = "train.learning_rate"
HELD_OUT = ["task=smoke", "task.protocol=held_out", "task.num_held_out_examples=20", "task.num_train_examples=32"]


def study(trials=4, methods=("lora", "head"), seeds=(0, 1), **search):
    return StudyConfig(
        settings=["backbone=tiny_bert", "train.epochs=3"],
        methods={name: [] for name in methods},
        tasks={"smoke": HELD_OUT},
        seeds=list(seeds),
        search=SearchConfig(trials, **search),
    )


def scored(folder, run, score):
    protocol = RunProtocol(
        *(
            "smoke",
            "accuracy",
            True,
            "train_held_out",
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
    )
    history = [HistoryEntry(1.0, 1, 0.5, {"accuracy": score}, 0.1)]
    folder.run_folder(run).write(Record(run.key, {}, protocol=protocol, history=history))


class TestDraws:
    def test_a_method_has_sizes_of_its_own_and_two_decades_around_its_rate(self):
        space = default_space(load_config(["method=lora"]))
        assert space == {"method.r": [2, 4, 8, 16, 32], RATE: {"low": 1e-4, "high": 1e-2, "log": True}}
        assert list(default_space(load_config(["method=full"]))) == [RATE]

    @pytest.mark.parametrize("sampler", ["random", "qmc"])
    def test_draws_depend_on_the_seed_and_the_names_alone_and_more_trials_begin_with_the_same(self, sampler):
        space = {"method.r": [1, 2, 3], RATE: {"low": 1e-5, "high": 1e-3, "log": True}}
        few = draw(SearchConfig(4, sampler=sampler), space, "lora", "cola")
        assert draw(SearchConfig(9, sampler=sampler), space, "lora", "cola")[:4] == few
        assert draw(SearchConfig(4, sampler=sampler), space, "lora", "mrpc") != few
        assert draw(SearchConfig(4, sampler=sampler, seed=3), space, "lora", "cola") != few
        assert all(1e-5 <= tried[RATE] <= 1e-3 and tried["method.r"] in (1, 2, 3) for tried in few)

    def test_rates_are_even_on_a_logarithmic_scale_and_whole_numbers_stay_whole(self):
        space = {RATE: {"low": 1e-5, "high": 1e-1, "log": True}, "method.r": {"low": 1, "high": 4}}
        drawn = draw(SearchConfig(400), space, "lora", "cola")
        assert 0.4 < sum(tried[RATE] < 1e-3 for tried in drawn) / 400 < 0.6
        counts = [sum(tried["method.r"] == r for tried in drawn) for r in (1, 2, 3, 4)]
        assert sum(counts) == 400
        assert min(counts) > 70

    def test_a_sobol_sequence_fills_the_range_evenly(self):
        drawn = draw(SearchConfig(8, sampler="qmc"), {"a.b": {"low": 0.0, "high": 8.0}}, "lora", "cola")
        assert sorted(int(tried["a.b"]) for tried in drawn) == list(range(8))

    def test_no_settings_come_twice(self):
        drawn = draw(SearchConfig(6), {"method.r": [1, 2, 3], "method.alpha": [1, 2]}, "lora", "cola")
        assert len({json.dumps(tried) for tried in drawn}) == 6


class TestExpansion:
    def test_every_method_has_as_many_trials_and_none_with_a_reported_seed(self, tmp_path):
        file, _ = expand("fair", study(), [], tmp_path)
        trials = [run for run in file.runs if run.is_trial]
        assert [sum(run.method == method for run in trials) for method in file.methods] == [4, 4]
        assert {run.seed for run in trials} == {1000}
        assert all(run.chosen is False and "train.save_weights=false" in run.overrides for run in trials)
        finals = [run for run in file.runs if not run.is_trial]
        assert {run.seed for run in finals} == {0, 1}
        assert all(run.chosen is None for run in finals)
        assert expand("fair", study(), [], tmp_path)[0].digest == file.digest

    def test_the_study_wins_over_the_ranges_of_a_method_and_the_command_line_over_both(self, tmp_path):
        config = study(methods=("lora",), space={"lora": {"method.alpha": [3], RATE: [1e-3, 2e-3, 3e-3, 4e-3]}})
        config = dataclasses.replace(config, methods={"lora": ["method=lora", "method.r=4"]})
        file, _ = expand("fair", config, ["method.alpha=5"], tmp_path)
        assert {run.tried[RATE] for run in file.runs} == {1e-3, 2e-3, 3e-3, 4e-3}
        for run in file.runs:
            assert "method.r" not in run.tried
            assert {"method.r=4", "method.alpha=5"} <= set(run.overrides)

    def test_rows_that_choose_are_never_the_reported_ones(self, tmp_path):
        config = dataclasses.replace(study(), tasks={"smoke": []})
        with pytest.raises(RequestError, match=r"lora on smoke: .* add task.protocol=held_out"):
            expand("fair", config, [], tmp_path)

    def test_a_reported_seed_does_not_choose(self, tmp_path):
        with pytest.raises(RequestError, match=r"search.seed=1 is one of the seeds"):
            expand("fair", study(seed=1), [], tmp_path)

    def test_too_few_settings_for_the_trials_are_refused(self, tmp_path):
        config = study(methods=("lora",), space={"lora": {"method.r": [1, 2], RATE: [0.1]}})
        with pytest.raises(RequestError, match=r"2 different settings, fewer than search.trials=4"):
            expand("fair", config, [], tmp_path)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("{trials: 0}", "must be at least 1"),
            ("{trials: 2, sampler: grid}", "search.sampler=grid is not known"),
            ("{trials: 2, space: {prefix: {method.r: [1]}}}", "prefix is none of its methods"),
            ("{trials: 2, space: {lora: {r: [1]}}}", "r is no setting of a run"),
            ("{trials: 2, space: {lora: {method.r: []}}}", "at least one number or word"),
            ("{trials: 2, space: {lora: {method.r: {low: 4, high: 1}}}}", "low must be less than high"),
            ("{trials: 2, space: {lora: {method.r: {low: 0, high: 1, log: true}}}}", "above 0 with log"),
            ("{trials: 2, space: {lora: {method.r: 4}}}", "must be a list of values"),
            ("{trials: 2, wrong: 4}", "wrong"),
        ],
    )
    def test_what_is_wrong_with_a_search_is_a_sentence(self, tmp_path, text, sentence):
        file = tmp_path / "mine.yaml"
        file.write_text(f"methods: {{lora: []}}\ntasks: {{smoke: []}}\nsearch: {text}\n")
        with pytest.raises(RequestError, match=sentence):
            open_study(str(file))

    def test_a_grid_of_rates_and_a_search_exclude_each_other(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text("methods: {lora: []}\ntasks: {smoke: []}\nsearch: {trials: 2}\nlearning_rates: {lora: [0.1]}\n")
        with pytest.raises(RequestError, match="leave out learning_rates"):
            open_study(str(file))


class TestChoice:
    def test_the_best_on_the_selection_rows_runs_with_the_seeds_and_no_trial_is_reported(self, tmp_path):
        file, _ = expand("fair", study(methods=("lora",)), [], tmp_path)
        folder = StudyFolder(tmp_path)
        trials = [run for run in file.runs if run.is_trial]
        for run, score in zip(trials[:3], (0.5, 0.8, 0.7), strict=True):
            scored(folder, run, score)
        choose_settings(file, folder)
        assert {run.chosen for run in file.runs if not run.is_trial} == {None}
        folder.run_folder(trials[3]).write(Record(trials[3].key, {}, status="diverged", error="no"))
        choose_settings(file, folder)
        assert [(run.tried, run.seed) for run in file.runs if run.chosen] == [
            (trials[1].tried, 0),
            (trials[1].tried, 1),
        ]

    def test_a_trial_that_was_shortened_is_not_taken(self, tmp_path):
        file, _ = expand("fair", study(methods=("lora",), trials=2), [], tmp_path)
        folder = StudyFolder(tmp_path)
        first, second = (run for run in file.runs if run.is_trial)
        scored(folder, first, 0.9)
        scored(folder, second, 0.6)
        first.share = 1 / 3
        choose_settings(file, folder)
        assert {run.candidate for run in file.runs if run.chosen} == {second.candidate}


def test_older_files_of_rates_are_read(tmp_path):
    run = PlannedRun("lora", "smoke", 0, "key", "folder", [], learning_rate=1e-3, is_trial=True)
    assert run.tried == {RATE: 1e-3}


class TestOptuna:
    """Trials that depend on earlier ones; the runs are records made by hand."""

    def play(self, path, config, score, *, read_again=False):
        """Asks, scores what was asked, and so on to the end."""
        folder = StudyFolder(path)
        file, _ = expand("fair", config, [], path)
        for _ in range(60):
            if read_again:
                file, _ = expand("fair", config, [], path)
            grow(file, folder, [("lora", "smoke")])
            choose_settings(file, folder)
            left = [run for run in file.runs if (run.is_trial or run.chosen) and not folder.ended(run)]
            if not left:
                return file
            for run in left:
                scored(folder, run, score(run))
        raise AssertionError("the search does not end")

    @pytest.fixture(autouse=True)
    def _optuna(self):
        pytest.importorskip("optuna", reason="the extra `search` is not installed")

    def test_tpe_tries_as_many_as_asked_and_a_process_that_starts_anew_goes_on(self, tmp_path):
        config = study(methods=("lora",), trials=5, sampler="tpe")

        def score(run):
            return 1 - abs(run.tried[RATE] - 2e-3)

        file = self.play(tmp_path / "once", config, score)
        trials = [run for run in file.runs if run.is_trial]
        assert len(trials) == 5
        assert {run.candidate for run in file.runs if run.chosen} == {max(trials, key=score).candidate}
        again = self.play(tmp_path / "again", config, score, read_again=True)
        assert [run.tried for run in again.runs] == [run.tried for run in file.runs]

    def test_hyperband_ends_bad_trials_early_and_takes_a_whole_one(self, tmp_path):
        config = study(methods=("lora",), trials=8, pruner="hyperband")
        config = dataclasses.replace(config, settings=["backbone=tiny_bert", "train.epochs=9"])
        rates = [tried[RATE] for tried in draw(config.search, default_space(load_config([])), "lora", "smoke")]
        file = self.play(tmp_path, config, lambda run: 1 - rates.index(run.tried[RATE]) / 10)
        trials = [run for run in file.runs if run.is_trial]
        assert {run.tried[RATE] for run in trials} == set(rates)
        shares = {rate: max(run.share for run in trials if run.tried[RATE] == rate) for rate in rates}
        assert shares[rates[0]] == 1
        assert min(shares.values()) < 1
        assert {run.tried[RATE] for run in file.runs if run.chosen} == {rates[0]}
        # A shorter trial is a run of its own, as `petl-bench run` would make it.
        short = next(run for run in trials if run.share < 0.2)
        assert "train.epochs=1" in short.overrides

    def test_a_training_without_an_early_end_is_refused(self, tmp_path):
        with pytest.raises(RequestError, match=r"train.epochs=1 has no early end"):
            expand("fair", study(pruner="hyperband"), ["train.epochs=1"], tmp_path)


def test_without_optuna_a_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    file = tmp_path / "mine.yaml"
    file.write_text("methods: {lora: []}\ntasks: {smoke: []}\nsearch: {trials: 2, sampler: tpe}\n")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RequestError, match=r"pip install 'petl-bench\[search\]'"):
        open_study(str(file))


YAML = """
settings: [backbone=tiny_bert, train.epochs=1, train.batch_size=16, measure.ledger=false, measure.inference=false]
methods: {head: [], bitfit: []}
tasks:
  smoke: [task=smoke, task.protocol=held_out, task.num_held_out_examples=20, task.num_train_examples=32]
seeds: [0, 1]
search: {trials: 2SAMPLER}
"""


@pytest.mark.parametrize("sampler", ["", ", sampler: tpe"])
def test_a_search_runs_to_its_end_and_the_report_shows_its_costs(tmp_path, sampler, monkeypatch, capsys):
    if sampler:
        pytest.importorskip("optuna", reason="the extra `search` is not installed")
    from petl_bench.cli import main
    from petl_bench.studies import study as module
    from petl_bench.studies.worker import work

    class Here:
        """Works in this process, where all is imported."""

        def __init__(self, _settings, folder, plan, runs):
            work(folder.path, plan, [run.key for run in runs])

        def alive(self):
            return False

    monkeypatch.setattr(module, "start_workers", Here)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(YAML.replace("SAMPLER", sampler))
    assert main(["study", "mine.yaml"]) == 0
    assert "8 runs: 8 finished" in capsys.readouterr().out
    file = read_study(tmp_path / "runs" / "mine")
    assert sum(run.is_trial for run in file.runs) == 4
    assert sum(run.chosen is True for run in file.runs) == 4
    assert main(["study", "mine.yaml"]) == 0
    assert main(["report", "runs/mine", "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert "search" in text
    assert main(["report", "runs/mine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(group["method"] for group in found["groups"]) == ["bitfit", "head"]
    costs = {one["method"]: one for one in found["searches"]}
    assert {one["trials"] for one in costs.values()} == {2}
    # 32 rows in batches of 16, one epoch, two trials.
    assert {one["updates"] for one in costs.values()} == {4}
    assert all(one["seconds"] > 0 and one["chosen"]["smoke"] for one in costs.values())
    picture = ["report", "runs/mine", "--plot", "tuning.png", "--plot-kind", "tuning"]
    if sampler:
        assert main(picture) == 2
        assert "sampler: random" in capsys.readouterr().err
    else:
        pytest.importorskip("opda", reason="the extra `search` is not installed")
        assert main(picture) == 0
        assert (tmp_path / "tuning.png").stat().st_size > 1000
        assert main(["report", "runs/mine", "--html", "page.html"]) == 0
        embedded = (tmp_path / "page.html").read_text().partition('id="data">')[2].partition("</script>")[0]
        curves = {one["method"]: one["points"] for one in json.loads(embedded)["tuning"]}
        assert curves.keys() == {"bitfit", "head"}
        for points in curves.values():
            assert [n for n, *_ in points] == [1, 2]
            # Two trials leave the band without an upper end.
            assert all(0 <= low <= score <= 100 and high is None for _, score, low, high in points)
