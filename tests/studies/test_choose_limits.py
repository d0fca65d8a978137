"""`petl-bench choose` within limits of memory, size, latency and time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from petl_bench.config import load_config
from petl_bench.errors import RequestError, RunError, parse_seconds
from petl_bench.estimate import plan
from petl_bench.run import run as run_module
from petl_bench.studies import answer as answer_module
from petl_bench.studies import choice as choice_module
from petl_bench.studies import choose as choose_module
from petl_bench.studies import worker
from petl_bench.studies.answer import selection_means
from petl_bench.studies.choice import SEEDS, ChoiceState, Limits, Step, affordable, first_subset
from petl_bench.studies.choice_trainings import REFERENCE, Durations, Subset
from studies.tickets import METHODS, SMALL, write_tickets


def test_what_exceeds_the_memory_or_the_size_is_left_out_before_any_training(choose, monkeypatch):
    overrides = ["task=smoke", "backbone=tiny_bert"]

    def estimated(*settings):
        return plan.estimate_all([(load_config([*overrides, *settings]), None)])[0]

    estimates = {name: estimated(f"method={name}") for name in ("full", "head")}
    between = (estimates["full"].estimate.peak_bytes + estimates["head"].estimate.peak_bytes) // 2
    candidates = [("full", {}), ("head", {}), ("lora", {"method.r": 0})]
    found = Limits(memory_bytes=between).left_out(candidates, overrides)
    assert set(found) == {"full", "lora, r=0"}
    assert found["full"].endswith("MiB an update")
    assert "method.r=0" in found["lora, r=0"]
    assert "full" in Limits(trainable_percent=50.0).left_out(candidates[:2], overrides)
    most = estimates["head"].params.trainable
    assert set(Limits(trainable=most).left_out(candidates[:2], overrides)) == {"full"}
    assert Limits().left_out(candidates[:2], overrides) == {}
    # Sizes that fit are drawn; of a method whose default does not, the nearest one is tried.
    sizes = {r: estimated("method=lora", f"method.r={r}") for r in (2, 4)}
    small = Limits(trainable=sizes[4].params.trainable)
    assert small.fitting_space("lora", overrides)["method.r"] == [2, 4]
    assert small.nearest_size("lora", overrides) == {"method.r": 4}
    assert Limits(trainable=sizes[2].params.trainable - 1).nearest_size("lora", overrides) == {}
    assert Limits().fitting_space("lora", overrides)["method.r"] == [2, 4, 8, 16, 32]
    code, _, err = choose(*SMALL, *METHODS, "--memory", "1KiB")
    assert code == 2
    assert "No method keeps to the limits (lora: " in err


def test_a_time_that_is_over_before_anything_was_trained_is_a_sentence(choose, monkeypatch):
    monkeypatch.setattr("petl_bench.process.process_seconds", lambda: 40.0)
    code, out, err = choose(*SMALL, *METHODS, "--time", "40s")
    assert (code, out) == (1, "")
    assert "No training could finish within --time 40s" in err
    code, out, err = choose(*SMALL, *METHODS, "--time", "10s")
    assert (code, out) == (2, "")
    assert "--time=10s is too short" in err


def test_a_latency_that_no_method_keeps_to_is_a_sentence(choose):
    code, _, err = choose(*SMALL, "--methods", "head", "--latency", "0.0001ms")
    assert code == 1
    assert "No method answers a row within --latency 0.0001ms" in err


def test_a_training_that_does_not_end_in_time_is_stopped(choose, monkeypatch):
    """The first training takes all the time that there is; the choice still ends in it."""
    monkeypatch.setattr(choose_module, "_ANSWER_SECONDS", 0.0)
    made = []

    def make(run, folder):
        made.append(run.method)
        time.sleep(60)

    monkeypatch.setattr(worker, "make", make)
    monkeypatch.setattr("petl_bench.commands._LEAST_SECONDS", 1)
    code, _, err = choose(*SMALL, *METHODS, "--time", "6s")
    assert code == 1
    assert "No training could finish within --time 6s" in err
    assert len(made) <= 1


WORDS_OF_TIME = ["data=tickets.csv", "backbone=tiny_bert", "train.epochs=9", "train.batch_size=64",
                 "backbone.pooling=cls"]  # fmt: skip
# What is measured besides the training decides nothing here.
WORDS_OF_TIME += ["measure.ledger=false", "measure.inference=false", "measure.baselines=false", "task.max_length=8",
                  "backbone.architecture.num_hidden_layers=1"]  # fmt: skip
WHOLE = {"lora": 90.0, "head": 9.0, "full": 120.0}


class TestTime:
    """On a clock that stands still but for trainings, of which each takes as long as its method and its length say."""

    @pytest.fixture
    def clock(self, monkeypatch):
        now, made = [0.0], []
        real = worker.make

        def seconds(method, share):
            return share * WHOLE["lora" if method == REFERENCE else method]

        def make(run, folder):
            now[0] += seconds(run.method, run.share)
            made.append((run.method, run.share, run.seed, run.key))
            real(run, folder)

        def predict(self, candidates, share, seeds=1, *, reports=False):
            known = {run.method for run, _ in self._finished}
            names = [method if method in known else "lora" for method, _ in candidates]
            return seeds * sum(seconds(name, share) for name in names) if known else 0.0

        monkeypatch.setattr(worker, "make", make)
        monkeypatch.setattr(Durations, "predict", predict)
        monkeypatch.setattr(choose_module.time, "monotonic", lambda: now[0])
        return now, made

    @pytest.mark.parametrize(
        ("limit", "share", "seeds", "words"),
        [
            ("40s", 1 / 9, 1, "after 11 % of this command's training"),
            ("115s", 1 / 3, 1, "after 33 % of this command's training"),
            ("300s", 1.0, 1, "rows that chose nothing, one seed"),
            ("700s", 1.0, 3, "rows that chose nothing, mean of 3 seeds"),
        ],
    )
    def test_the_time_is_used_and_kept(self, choose, clock, limit, share, seeds, words):
        now, made = clock
        code, out, err = choose(*WORDS_OF_TIME, "--methods", ",".join(WHOLE), "--time", limit)
        assert code == 0, err
        assert words in out
        finals = [one for one in made if one[2] != 1000]
        assert finals
        assert {one[1] for one in finals} == {share}
        assert {one[2] for one in finals} == set(range(seeds))
        # LoRA was first, and what was not tried is told.
        assert made[0][0] == "lora"
        missing = [name for name in WHOLE if name not in {one[0] for one in made}]
        assert ("not trained, as the time did not suffice: " in out) == bool(missing)
        assert now[0] <= parse_seconds("--time", limit)
        folder = Path(out.split("trained: ")[1].splitlines()[0])
        assert (folder / "adapter").is_dir() or (folder / "model").is_dir()

    def test_time_that_is_left_gives_the_best_more_seeds(self, choose, clock):
        now, _ = clock
        code, out, _ = choose(*WORDS_OF_TIME, "--methods", "head", "--time", "50s")
        assert code == 0
        assert "mean of 3 seeds" in out
        assert now[0] <= 50
        steps = json.loads(Path("runs/choose-tickets/.study/choice.json").read_text())["steps"]
        # Three seeds did not fit at once by the prediction with its margin, but did one after the other.
        assert [step["seeds"] for step in steps[-2:]] == [[0], [1, 2]]

    def test_with_more_time_the_same_command_goes_on(self, choose, clock):
        _, made = clock
        words = [*WORDS_OF_TIME, "--methods", ",".join(WHOLE)]
        assert choose(*words, "--time", "115s")[0] == 0
        first, made[:] = list(made), []
        assert choose(*words, "--time", "400s")[0] == 0
        # What was trained before counts.
        assert not set(first) & set(made)
        assert {one[1] for one in made if one[2] != 1000} == {1.0}

    def test_a_longer_limit_decides_anew_and_a_shorter_one_does_not(self):
        step = Step(0, [], [0])
        for limits, kept in [((10.0, 20.0), False), ((10.0, None), False), ((20.0, 10.0), True), ((None, 10.0), True)]:
            state = ChoiceState([], settings=2, steps=[step], limit=limits[0])
            state.allow(limits[1])
            assert (state.steps == [step], state.settings) == ((True, 2) if kept else (False, None))


def test_times_have_units():
    assert [parse_seconds("--time", text) for text in ("90s", "30min", "1.5h", "20ms")] == [90, 1800, 5400, 0.02]
    for text in ("90", "0s", "-1s", "1 day"):
        with pytest.raises(RequestError, match="is not a time"):
            parse_seconds("--time", text)


def test_a_method_that_fails_is_named_with_its_error(choose, monkeypatch):
    train_and_evaluate = run_module._train_and_evaluate

    def failing_for_head(cfg, *others):
        if cfg.method.name == "head":
            raise RunError("The loss is not finite.")
        train_and_evaluate(cfg, *others)

    monkeypatch.setattr(run_module, "_train_and_evaluate", failing_for_head)
    code, out, _ = choose(*SMALL, *METHODS)
    assert code == 0
    assert "failed: head (The loss is not finite)" in out, out
    assert "did not suffice" not in out


def test_of_many_rows_the_answer_is_that_of_a_part_if_every_training_on_all_rows_fails(choose, monkeypatch):
    train_and_evaluate = run_module._train_and_evaluate

    def failing_on_all_rows(cfg, *others):
        if cfg.train.seed in SEEDS:
            raise RunError("The loss is not finite.")
        train_and_evaluate(cfg, *others)

    monkeypatch.setattr(run_module, "_train_and_evaluate", failing_on_all_rows)
    write_tickets(Path("tickets.csv"), rows=3200)
    settings = [word for word in WORDS_OF_TIME if not word.startswith("train.epochs")]
    code, out, err = choose(*settings, "train.epochs=1", *METHODS)
    assert code == 0, err
    assert "on the rows that chose it, so probably too high" in out
    assert "as those on all rows failed (The loss is not finite.)" in out


class Even:
    """Predicts that each training takes as many seconds as its share of a whole one."""

    def predict(self, candidates, share, seeds=1, *, reports=False):
        return len(candidates) * share * seeds


SIX = tuple((name, {}) for name in "abcdef")


@pytest.mark.parametrize(
    ("updates", "left", "index"),
    [
        # A fifth of 500 updates is enough, two fifths of 250, and all of 200.
        (500, 100, 0),
        (499, 100, 1),
        (250, 100, 1),
        (249, 100, 2),
        # Of fewer, more are not to be had.
        (20, float("inf"), 2),
        # Six methods, a second setting of three and two on all rows: 6 + 3 + 2 seconds, or 2.4 + 1.2 + 2.
        (200, 11.1, 2),
        (200, 10.9, 1),
        (200, 5.7, 1),
        (200, 5.5, 0),
        (0, 100, 0),
    ],
)
def test_the_first_trainings_are_long_enough_to_tell_if_time_allows(updates, left, index):
    lengths = [Subset(share, False, [], "") for share in (0.2, 0.4, 1.0)]
    assert first_subset(list(SIX), lengths, updates, Even(), left) == index
    parts = [Subset(share, True, [], "") for share in (1 / 9, 1 / 3)]
    assert first_subset(list(SIX), parts, updates, Even(), left) == 0


class TestAffordable:
    """How thorough a search is."""

    @pytest.mark.parametrize(
        ("left", "plan"),
        [
            (float("inf"), (4, 0, 3)),
            # 7 settings of six methods at a third, and four trainings with three seeds each: 14 + 12.
            (26.1, (8, 0, 3)),
            (25.9, (6, 0, 3)),
            # With less time, the three best methods alone get further settings: 3 + 9 with three seeds, 3 + 3 with one.
            (12.1, (4, 3, 2)),
            (6.1, (4, 3, 2)),
            (5.1, (3, 3, 2)),
            (4.1, (2, 3, 2)),
            (3.9, (2, 3, 1)),
            (3.1, (2, 3, 1)),
            (2.7, (2, 2, 1)),
            (2.5, (2, 1, 1)),
            (2.1, (1, 0, 1)),
            (0.5, (1, 0, 1)),
        ],
    )
    def test_less_time_means_fewer_settings_of_fewer_methods(self, left, plan):
        assert affordable(list(SIX), [1 / 3], Even(), left) == plan

    def test_the_better_third_is_trained_again_on_more_rows(self):
        """At a ninth 42 more trainings take 4.7; of all 48, 16 at a third take 5.3; four with three seeds take 12."""
        assert affordable(list(SIX), [1 / 9, 1 / 3], Even(), 22.1) == (8, 0, 3)
        assert affordable(list(SIX), [1 / 9, 1 / 3], Even(), 21.9)[0] < 8

    def test_of_one_method_one_is_trained_on_all_rows(self):
        """Three settings at a third, then it and LoRA with three seeds: 1 + 6."""
        assert affordable([("a", {})], [1 / 3], Even(), 7.1) == (4, 0, 3)


def test_rates_near_the_default_are_tried_before_settings_are_drawn(choose, monkeypatch):
    monkeypatch.setattr(choice_module, "_WITHOUT_TIME", (5, 1, 1))
    code, _, err = choose(*SMALL, *METHODS, "backbone.pooling=cls")
    assert code == 0, err
    steps = json.loads(Path("runs/choose-tickets/.study/choice.json").read_text())["steps"]
    defaults, further = dict(steps[1]["candidates"]), steps[2]["candidates"]
    # Of the best method alone: half a decade up and down, then two draws.
    (method,) = {name for name, _ in further}
    rate = defaults[method]["train.learning_rate"]
    tried = [settings["train.learning_rate"] / rate for _, settings in further]
    assert tried[:2] == pytest.approx([3.16, 0.316], rel=1e-3)
    assert len(tried) == 4
    assert len({round(one, 6) for one in (*tried, 1)}) == 5
    assert all(0.1 <= one <= 10 for one in tried)


class TestDurations:
    """What is predicted from one training of two epochs with ten updates each."""

    @pytest.fixture
    def predict(self, tmp_path):
        def call(share, *, by_rows=False, evaluate_every=None, scorings=2, **others):
            time_of_it = {"train_seconds": 20.0, "eval_seconds": 4.0, "features_seconds": 3.0}
            record = SimpleNamespace(
                time=SimpleNamespace(**time_of_it, warm_up_updates=0, warm_up_seconds=0.0),
                history=[SimpleNamespace(step=20)] * scorings,
                config={"train": {"evaluate_every": evaluate_every}},
                resumed_at_updates=[],
                frozen=None,
            )
            run = SimpleNamespace(method="lora", share=0.2, folder="none")
            counts = {"train": 300, "selection": 100, "report": 200}
            rows = SimpleNamespace(by_rows=by_rows, counts=counts)
            folder = SimpleNamespace(path=tmp_path, run_folder=lambda run: SimpleNamespace(log=tmp_path / "none"))
            return Durations(folder, rows, [(run, record)]).predict([("lora", {})], share, **others)

        return call

    def test_a_longer_training_is_scored_more_often(self, predict):
        # Five times 20 seconds, and ten scorings of two seconds.
        assert predict(1.0) == pytest.approx(100 + 20)
        # On more rows, it has as many epochs; the features of these rows are computed.
        assert predict(1.0, by_rows=True) == pytest.approx(100 + 4 + 15)

    def test_scorings_may_have_an_interval_of_updates(self, predict):
        # 100 updates: at 64 and at the end.
        assert predict(1.0, evaluate_every=64, scorings=1) == pytest.approx(100 + 2 * 4)
        assert predict(0.2, evaluate_every=64, scorings=1) == pytest.approx(20 + 4)

    def test_the_reported_rows_take_as_long_as_as_many_others(self, predict):
        # 200 of them are two scorings of 100, and half as many features as of the other 400 rows.
        assert predict(0.2, reports=True) == pytest.approx(20 + 4 + 2 * 2 + 1.5)


class TestSelectionMeans:
    """What decides among the methods at last."""

    RUNS = (
        # Method, learning rate, whether it chose, share, score on the selection rows.
        ("full", 3e-4, True, 1.0, 0.8),
        ("full", 1e-4, True, 1.0, 0.7),
        ("lora", 1e-3, True, 1.0, 0.6),
        ("lora", 1e-3, True, 0.4, 0.1),
        ("full", 3e-4, False, 1.0, 0.5),
        (REFERENCE, 1e-3, False, 1.0, 0.7),
    )

    def means(self, monkeypatch, *, by_rows):
        monkeypatch.setattr(answer_module, "selection_score", lambda score: score)
        trained = [
            (SimpleNamespace(method=method, candidate=f"learning_rate={rate}", is_trial=is_trial, share=share), score)
            for method, rate, is_trial, share, score in self.RUNS
        ]
        last = SimpleNamespace(is_trial=False, share=1.0)
        return {
            (method, settings.partition("=")[2]): round(mean, 6)
            for (method, settings), mean in selection_means(trained, last, by_rows=by_rows).items()
        }

    def test_a_whole_training_that_chose_is_one_more_seed(self, monkeypatch):
        means = self.means(monkeypatch, by_rows=False)
        assert means == {("full", "0.0003"): 0.65, ("full", "0.0001"): 0.7, ("lora", "0.001"): 0.65}

    def test_trainings_on_fewer_rows_are_not(self, monkeypatch):
        assert self.means(monkeypatch, by_rows=True) == {("full", "0.0003"): 0.5, ("lora", "0.001"): 0.7}
