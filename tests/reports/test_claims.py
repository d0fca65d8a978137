"""Claims against verdicts worked out by hand."""

from __future__ import annotations

import pytest

from petl_bench.errors import RequestError
from petl_bench.records.schema import HistoryEntry
from petl_bench.records.study_file import Claim, PlannedCosts
from petl_bench.reports.claims import CLAIM_TESTS, check_claim, claim_rows
from reports.toy_study import MEASURED, key, record, study


def verdict(test: dict, found=MEASURED, **settings) -> tuple[str, str]:
    (row,) = claim_rows(study(claims=[Claim("It is so", "a paper", test)], **settings), found)
    assert row.keys() == {"claim", "source", "verdict", "numbers"}
    return row["verdict"], row["numbers"]


A_BEATS_B = {"kind": "better", "method": "a", "than": "b"}


def b_keeps_up(within: float, **more) -> dict:
    return {"kind": "comparable", "method": "b", "to": "a", "within": within, **more}


def ratio(quantity: str, of: str, over: str, at_least: float) -> dict:
    return {"kind": "ratio", "quantity": quantity, "of": of, "over": over, "at_least": at_least}


@pytest.mark.parametrize(
    ("test", "expected", "numbers"),
    [
        ({"kind": "share_at_most", "method": "a", "percent": 0.53}, "reproduced", "0.530 %"),
        ({"kind": "share_at_most", "method": "a", "percent": 0.5}, "reproduced", "claimed: 0.5 %"),
        ({"kind": "share_at_most", "method": "a", "percent": 0.52}, "not reproduced", "0.530 %"),
        ({"kind": "share_at_most", "method": "b", "percent": 0.53}, "not reproduced", "5.300 %"),
        ({"kind": "params_at_most", "method": "b", "millions": 0.0005}, "reproduced", "520"),
        ({"kind": "params_at_most", "method": "b", "millions": 0.0004}, "not reproduced", "520"),
        (ratio("ledger_peak", "b", "a", 3.2), "reproduced", "3.20"),
        (ratio("ledger_peak", "b", "a", 3.3), "not reproduced", "3.20"),
        (ratio("inference_throughput", "a", "b", 3), "reproduced", "3.00"),
        (ratio("train_throughput", "b", "a", 1), "not reproduced", "0.33"),
        (ratio("trainable", "b", "a", 10), "reproduced", "10.00"),
        # The same on every seed: nothing is known about other trainings.
        (ratio("best_epoch", "b", "a", 1.17), "too few seeds", "with a spread"),
        (ratio("device_peak", "b", "a", 1), "not run yet", "not measured"),
        # The means over the tasks are 0.5, 1.5, 2.5, 4.303 x 0.577 on either side; on t alone they are 2, 3, 4.
        (A_BEATS_B, "not reproduced", "+1.50 [-0.98, +3.98] points over 3 seeds"),
        (A_BEATS_B | {"tasks": ["t"]}, "reproduced", "+3.00 [+0.52, +5.48] points over 3 seeds"),
        # The bound lies inside the interval of 0.52 to 5.48, or above it.
        ({"kind": "better", "method": "a", "than": ["b"], "tasks": ["t"], "at_least": 3.5}, "undecided", "+3.00"),
        ({"kind": "better", "method": "a", "than": ["b"], "tasks": ["t"], "at_least": 5.5}, "not reproduced", "+3.00"),
        ({"kind": "better", "method": "a", "than": ["b"], "tasks": ["t"], "at_least": 2.5}, "reproduced", "+3.00"),
        (A_BEATS_B | {"tasks": ["t"], "metric": "f1"}, "reproduced", "+3.00"),
        (A_BEATS_B | {"needs": "every"}, "not reproduced", "t +3.00, u +0.00"),
        (A_BEATS_B | {"needs": "most"}, "not reproduced", "t +3.00"),
        ({"kind": "better", "method": "b", "than": "a", "tasks": ["t"]}, "not reproduced", "-3.00"),
        (b_keeps_up(1), "undecided", "-1.50"),
        (b_keeps_up(3.9), "undecided", "-1.50"),
        (b_keeps_up(4), "reproduced", "-1.50"),
        (b_keeps_up(0.5, tasks=["t"]), "not reproduced", "-3.00"),
        (b_keeps_up(1, needs="every"), "not reproduced", "u +0.00"),
        (b_keeps_up(1, tasks=["u"], needs="most"), "reproduced", ""),
        ({"kind": "same_choice", "method": "a", "tasks": ["t", "u"]}, "reproduced", "t 2/2/2, u 2/2/2"),
    ],
)  # fmt: skip
def test_verdicts_by_hand(test, expected, numbers):
    found, said = verdict(test)
    assert (found, numbers in said) == (expected, True), said


def test_every_kind_was_tried():
    marks = test_verdicts_by_hand.pytestmark[0].args[1]
    assert {test["kind"] for test, *_ in marks} == set(CLAIM_TESTS)


def test_a_choice_that_moves():
    moved = [item if "-u-" not in item.run_key else record(item.run_key, 0.5, task="u", layer=5) for item in MEASURED]
    test = {"kind": "same_choice", "method": "a", "tasks": ["t", "u"], "within": 2}
    assert verdict(test, moved) == (
        "not reproduced",
        "layer chosen by a, a seed each: t 2/2/2, u 5/5/5; claimed: 2 apart",
    )
    assert verdict(test | {"within": 3}, moved)[0] == "reproduced"


def test_lower_errors_are_better():
    found = [
        record(key(method, "t", seed), score * (1 + seed / 10), error=True, seed=seed)
        for method, score in (("a", 0.2), ("b", 0.4))
        for seed in range(3)
    ]
    test = A_BEATS_B | {"tasks": ["t"]}
    assert verdict(test, found)[0] == "reproduced"
    assert "+0.22" in verdict(test, found)[1]
    # Equal differences have no spread, from which nothing follows about other trainings.
    equal = [
        record(key(method, "t", seed), score + seed / 10, error=True, seed=seed)
        for method, score in (("a", 0.2), ("b", 0.4))
        for seed in range(3)
    ]
    assert verdict(test, equal)[0] == "too few seeds"


def test_missing_runs_give_no_verdict():
    test = A_BEATS_B | {"tasks": ["t"]}
    assert verdict(test, []) == ("not run yet", "6 runs are missing, the first of them a on t")
    assert verdict(test, [item for item in MEASURED if item.run_key != key("b", "t", 2)]) == (
        "not run yet", "1 run is missing, the first of them b on t",
    )  # fmt: skip
    for test in (
        {"kind": "share_at_most", "method": "a", "percent": 1},
        {"kind": "same_choice", "method": "a", "tasks": ["t"]},
    ):
        assert verdict(test, [])[0] == "not run yet"


@pytest.mark.parametrize("needs", ["mean", "most", "every"])
def test_fewer_than_three_seeds_give_no_verdict(needs):
    for test in (A_BEATS_B, b_keeps_up(1)):
        found, said = verdict(test | {"tasks": ["t"], "needs": needs}, seeds=(0, 1))
        assert found == "too few seeds"
        assert "3 seeds that finished every task, with a spread, are needed" in said


def test_failed_runs_are_counted_in_the_numbers():
    failed = [
        item if item.run_key != key("b", "t", 2) else record(item.run_key, 0.0, seed=2, status="diverged")
        for item in MEASURED
    ]
    found, said = verdict(A_BEATS_B | {"tasks": ["t"]}, failed)
    assert found == "too few seeds"
    assert "over 2 seeds, 1 failed runs left out" in said


def test_what_cannot_be_tested_says_why():
    claim = Claim("It is so", "a paper", untestable="no speech tasks")
    (row,) = claim_rows(study(claims=[claim]), [])
    assert (row["verdict"], row["numbers"]) == ("not testable here", "no speech tasks")


def test_planned_costs_answer_before_any_run():
    costs = [PlannedCosts("a", "t", 43, 10, 0.53, 100), PlannedCosts("b", "t", 520, 10, 5.3, 320)]
    test = {"kind": "ratio", "quantity": "ledger_peak", "of": "b", "over": "a", "at_least": 3.2, "tasks": ["t"]}
    assert verdict(test, [], costs=costs)[0] == "reproduced"
    assert verdict(test | {"quantity": "trainable", "at_least": 11}, [], costs=costs)[0] == "not reproduced"
    assert verdict({"kind": "share_at_most", "method": "a", "percent": 0.53}, [], costs=costs)[0] == "reproduced"


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({}, "kind"),
        ({"kind": "beter", "method": "a", "than": "b"}, "Did you mean 'better'"),
        ({"kind": "better", "method": "a"}, "must give than"),
        ({"kind": "better", "method": "c", "than": "b"}, "method=c"),
        ({"kind": "better", "method": "a", "than": ["b", "d"]}, "method=d"),
        (A_BEATS_B | {"tasks": ["v"]}, "task=v"),
        (A_BEATS_B | {"needs": "some"}, "needs=some"),
        (A_BEATS_B | {"percent": 1}, "percent"),
        (ratio("beauty", "a", "b", 1), "quantity=beauty"),
        ({"kind": "share_at_most", "method": "a", "percent": "few"}, "must be a number"),
    ],
)
def test_a_wrong_claim_is_named(test, said):
    with pytest.raises(RequestError, match="It is so") as error:
        verdict(test)
    assert said in str(error.value)


def test_a_claim_is_tested_or_untestable_not_both():
    with pytest.raises(RequestError, match="leave one out"):
        check_claim(Claim("It is so", "a paper", {"kind": "better"}, "why"), ["a"], ["t"])


def test_a_ratio_over_no_tasks_is_not_run():
    claim = Claim("a", "b", {"kind": "ratio", "quantity": "ledger_peak", "of": "a", "over": "b", "at_least": 1})
    (row,) = claim_rows(study(claims=[claim], tasks=()), [])
    assert row["verdict"] == "not run yet"


def test_a_ratio_of_what_training_decides_needs_an_interval():
    """Logarithms of the ratios 2, 2 and 4 are 1, 1 and 2 times log 2: mean 4/3, t interval 4.303 / 3 on either side."""

    def converging(method: str, seed: int, step: int):
        one = record(key(method, "t", seed), 0.8, seed=seed)
        one.history = [
            HistoryEntry(1.0, step, 0.5, {"accuracy": 0.76}, 0.1),
            HistoryEntry(2.0, 1000, 0.4, {"accuracy": 0.8}, 0.1),
        ]
        return one

    steps = {"a": (100, 100, 100), "b": (200, 200, 400)}
    found = [converging(method, seed, step) for method in steps for seed, step in enumerate(steps[method])]
    test = ratio("updates_to_95_percent", "b", "a", 1) | {"tasks": ["t"]}
    assert verdict(test, found) == (
        "undecided",
        "updates_to_95_percent: b over a 2.52 [0.93, 6.81] over 3 seeds; claimed: 1 at least; "
        "upper bounds, reached at the first evaluation: 3 of 3 values of b and 3 of 3 values of a",
    )
    # An error, or a score of 0, has no such value.
    fourth = [converging(method, 3, 100) for method in steps]
    for entry in fourth[0].history:
        entry.scores["accuracy"] = 0.0
    assert verdict(test, [*found, *fourth], seeds=(0, 1, 2, 3))[1].endswith("; 1 seed without a value left out")
    # With upper bounds there is no verdict.
    for bounds, low, high in (
        (6, "undecided", "undecided"),
        (1, "undecided", "undecided"),
        (0, "reproduced", "not reproduced"),
    ):
        for one in found[bounds:]:
            one.history = [HistoryEntry(0.1, 1, 0.9, {"accuracy": 0.1}, 0.1), *one.history[-2:]]
        assert verdict(test | {"at_least": 0.9}, found)[0] == low
        assert verdict(test | {"at_least": 7}, found)[0] == high
    found = [converging(method, seed, step) for method in steps for seed, step in enumerate(steps[method])]
    two = [one for one in found if one.protocol.seed < 2]
    assert verdict(test, two, seeds=(0, 1))[0] == "too few seeds"
