"""Who is best, what is printed in bold, and what comparisons say."""

from __future__ import annotations

import pytest

from petl_bench.errors import RequestError
from petl_bench.reports.groups import group_records
from petl_bench.reports.ranking import compare, rank_methods
from petl_bench.reports.results_table import backbone_results
from petl_bench.reports.tables import comparison_table
from reports.generated import record, records, results_tables

# Eight seeds: `second` differs from `best` now up, now down; `worst` is lower with every seed.
BEST = [0.90, 0.91, 0.92, 0.93, 0.90, 0.91, 0.92, 0.93]
SECOND = [0.91, 0.90, 0.93, 0.90, 0.91, 0.90, 0.93, 0.91]
WORST = [0.80, 0.82, 0.81, 0.82, 0.80, 0.81, 0.82, 0.83]


def results_of(made):
    (results,) = backbone_results(group_records(made))
    return results


def column(made, task="mrpc", statistic="mean"):
    return rank_methods(results_of(made), statistic).tasks[task]


def test_what_cannot_be_told_from_the_best_is_bold_too():
    found = column(records({"best": {"mrpc": BEST}, "second": {"mrpc": SECOND}, "worst": {"mrpc": WORST}}))
    assert found.bold == {"best", "second"}
    # All eight differences have one sign: 2 of 2^8 flips; times two methods.
    assert found.p["worst"] == 2 * 2 / 2**8
    assert found.p["second"] > 0.05
    assert (found.pairs, found.too_few) == ((8,), False)


def test_six_seeds_tell_two_methods_apart_but_not_three():
    # 2 / 2^6 = 0.031 is below 0.05; times two comparisons, 0.0625, it is not.
    two = {"best": {"mrpc": BEST[:6]}, "worst": {"mrpc": WORST[:6]}}
    assert column(records(two)).bold == {"best"}
    assert not column(records(two)).too_few
    three = column(records({**two, "second": {"mrpc": SECOND[:6]}}))
    assert three.too_few
    assert three.bold == {"best"}


def test_with_too_few_seeds_only_the_best_is_bold_and_a_note_says_so():
    made = records({"a": {"mrpc": [0.8, 0.9, 0.8]}, "b": {"mrpc": [0.7, 0.9, 0.85]}, "c": {"mrpc": [0.8, 0.9, 0.8]}})
    (table,) = results_tables(made)
    place = table.header.index("mrpc acc")
    # a and c have the same mean; both are the best.
    assert table.bold == {(0, place), (2, place)}
    assert any(note.startswith("n = 3: too few seeds to tell methods apart") for note in table.notes)
    assert not any(note.startswith("bold: ") for note in table.notes)


def test_the_note_says_what_bold_means():
    (table,) = results_tables(records({"a": {"mrpc": BEST}, "b": {"mrpc": WORST}}))
    (note,) = [note for note in table.notes if "bold" in note]
    assert note.startswith("bold: the best mean of a column and all that are not distinguishable from it")


def test_nothing_is_bold_where_there_is_nothing_to_compare():
    (table,) = results_tables(records({"a": {"mrpc": BEST}}))
    assert table.bold == frozenset()
    assert "avg rank" not in table.header
    assert not any("bold" in note for note in table.notes)


def test_of_errors_the_lowest_is_best():
    made = [record("low", "stsb", 0, 0.2, error_metric=True), record("high", "stsb", 0, 0.4, error_metric=True)]
    assert column(made, "stsb").bold == {"low"}
    made += [record("low", "mrpc", 0, 0.7), record("high", "mrpc", 0, 0.7)]
    found = rank_methods(results_of(made))
    # Percentages and errors have no mean, but ranks: (1 + 1.5) / 2 and (2 + 1.5) / 2.
    assert found.averages == {}
    assert found.ranks == {"low": 1.25, "high": 1.75}


def test_a_column_shows_one_metric():
    """Of a run with another primary metric, the column's, or nothing."""
    made = [record("a", "stsb", 0, 0.8), record("b", "stsb", 0, 0.3, error_metric=True), record("c", "stsb", 0, 0.7)]
    made[1].scores.best["accuracy"] = 0.9
    found = results_of(made)
    assert [found.scores(method) for method in "abc"] == [{("stsb", 0): score} for score in (0.8, 0.9, 0.7)]
    assert rank_methods(found).tasks["stsb"].bold == {"b"}
    del made[1].scores.best["accuracy"]
    (table,) = results_tables(made)
    assert [row[table.header.index("stsb acc")] for row in table.rows] == ["80.0", "-", "70.0"]


def test_a_seed_that_was_run_twice_is_one_pair():
    made = [record("a", "mrpc", 0, 0.8), record("a", "mrpc", 0, 0.9, key="again"), record("b", "mrpc", 0, 0.5)]
    (found,) = compare([results_of(made)], "b")
    assert found.difference.n == 1
    assert found.difference.mean == pytest.approx(0.9 - 0.5)


def test_the_best_median_need_not_be_the_best_mean():
    made = records({"a": {"mrpc": [0.1, 0.8, 0.8]}, "b": {"mrpc": [0.7, 0.7, 0.7]}})
    assert column(made).bold == {"b"}
    assert column(made, statistic="median").bold == {"a"}
    (table,) = results_tables(made, "median")
    assert table.rows[0][table.header.index("mrpc acc")] == "80.0 (3) [10.0, 80.0]"


def test_average_and_average_rank_by_hand():
    made = records({
        "a": {"mrpc": [0.8, 0.9], "rte": [0.6, 0.7]},
        "b": {"mrpc": [0.7, 0.95], "rte": [0.65, 0.7]},
        "c": {"mrpc": [0.1, 0.2]},
    })  # fmt: skip
    (table,) = results_tables(made)
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    # a: (85 + 65) / 2; b: (82.5 + 67.5) / 2; c lacks a task.
    assert [rows[method]["avg"] for method in "abc"] == ["75.0", "75.0", "-"]
    # All three have mrpc alone. Seed 0: 1, 2, 3; seed 1: 2, 1, 3.
    assert [rows[method]["avg rank"] for method in "abc"] == ["1.50", "1.50", "3.00"]


def test_costs_over_several_tasks_are_the_costliest():
    made = [record("a", "mrpc", 0, 0.8, speed=100.0), record("a", "rte", 0, 0.8, speed=40.0, trained=20)]
    made[1].inference.latency_ms_median = 2.5
    (table,) = results_tables(made)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert (row["infer ex/s"], row["train ex/s"], row["infer ms"]) == ("40", "40", "2.5")
    assert row["method params"] == "15"


def test_a_comparison_as_a_sentence():
    scores = [0.80, 0.81, 0.82, 0.83, 0.84, 0.85]
    ahead = [0.01, 0.02, 0.01, 0.02, 0.01, 0.02]
    made = records({"full": {"mrpc": scores}, "lora": {"mrpc": [s + d for s, d in zip(scores, ahead, strict=True)]}})
    (found,) = compare([results_of(made)], "full")
    # Mean of the differences 1.5 points; 2 / 2^6.
    assert found.sentence().startswith("lora − full: +1.5 points [")
    assert found.sentence().endswith("], n = 6: lora is better (p = 0.031 after Holm)")
    (turned,) = compare([results_of(made)])
    assert turned.sentence().startswith("full − lora: −1.5 points [−")
    assert turned.sentence().endswith("n = 6: full is worse (p = 0.031 after Holm)")


def test_no_difference_as_a_sentence():
    made = records({"full": {"mrpc": BEST}, "lora": {"mrpc": SECOND}})
    (found,) = compare([results_of(made)], "full")
    # Differences 1, -1, 1, -3, 1, -1, 1, -2 sum to -3; -3 / 8 points.
    assert found.sentence().startswith("lora − full: −0.4 points")
    assert "no difference shown (p = " in found.sentence()


def test_few_pairs_can_show_nothing_and_the_words_say_so():
    made = records({name: {"mrpc": [0.8 + k, 0.81 + k, 0.83 + k]} for name, k in (("a", 0), ("b", 0.1), ("c", 0.05))})
    words = [one.sentence() for one in compare([results_of(made)], "a")]
    assert words[0].startswith("b − a: +10.0 points [10.0, 10.0], n = 3: n is too small to show anything")
    # 2 / 2^3 = 0.25, times two comparisons.
    assert "0.25, 0.5 after Holm" in words[0]


def test_of_errors_less_is_better():
    made = [record("a", "stsb", seed, 0.4 + seed / 100, error_metric=True) for seed in range(6)]
    made += [record("b", "stsb", seed, 0.3 + seed / 100, error_metric=True) for seed in range(6)]
    (found,) = compare([results_of(made)], "a")
    assert found.difference.mean == pytest.approx(0.1)
    assert found.sentence() == "b − a: +0.1000 [0.1000, 0.1000], n = 6: b is better (p = 0.031 after Holm)"


def test_the_correction_is_over_all_comparisons_of_the_report():
    made = records({"a": {"mrpc": BEST}, "b": {"mrpc": WORST}})
    for one in records({"a": {"mrpc": BEST}, "b": {"mrpc": WORST}}):
        one.config["backbone"]["name"] = "another"
        one.run_key += "another"
        made.append(one)
    found = compare(backbone_results(group_records(made)), "a")
    assert [one.p for one in found] == [2 * 2 / 2**8] * 2


def test_what_is_compared_by_default():
    one_seed = records({"a": {"mrpc": [0.8]}, "b": {"mrpc": [0.9]}})
    assert compare([results_of(one_seed)]) == []
    assert [one.sentence() for one in compare([results_of(one_seed)], "a")] == [
        "b − a: +10.0 points, n = 1: n is too small to show anything (the least p that the test can give is 1, "
        "1 after Holm)"
    ]
    two_seeds = records({"a": {"mrpc": [0.8, 0.9], "rte": [0.9, 0.9]}, "b": {"mrpc": [0.9, 0.9]}})
    # b's mean is higher, but of one task only.
    assert [one.name for one in compare([results_of(two_seeds)])] == ["b − a"]


def test_methods_without_a_common_pair_are_named():
    made = [record("a", "mrpc", 0, 0.8), record("b", "mrpc", 1, 0.9)]
    found = compare([results_of(made)])
    assert found[0].sentence() == "a − b: no (task, seed) that both finished"
    assert comparison_table(found).rows == [["a − b", "-", "-", "0", "-", "-"]]


def test_an_unknown_reference_is_answered_with_the_known_ones():
    all_results = [results_of(records({"a": {"mrpc": [0.8]}, "b": {"mrpc": [0.9]}}))]
    with pytest.raises(RequestError, match="--compare c: no finished run of it here; there are a, b"):
        compare(all_results, "c")
