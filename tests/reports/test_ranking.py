"""Who is best, what is printed in bold, and what comparisons say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats

from petl_bench.errors import RequestError
from petl_bench.records.predictions import Predictions
from petl_bench.reports.comparison_table import comparison_table, sentence
from petl_bench.reports.csv_json import to_json
from petl_bench.reports.differences import find_differences, no_predictions
from petl_bench.reports.groups import group_records
from petl_bench.reports.ranking import analyse
from petl_bench.reports.results_table import backbone_results
from petl_bench.reports.significance import over_seeds_and_rows
from reports.generated import record, records, results_tables

# Eight seeds: `second` differs from `best` now up, now down; `worst` is lower with every seed.
BEST = [0.90, 0.91, 0.92, 0.93, 0.90, 0.91, 0.92, 0.93]
SECOND = [0.91, 0.90, 0.93, 0.90, 0.91, 0.90, 0.93, 0.91]
WORST = [0.80, 0.82, 0.81, 0.82, 0.80, 0.81, 0.82, 0.83]

# Seven tasks of data sets of their own.
TASKS = ["cola", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli"]


def analysed(made, reference=None, statistic="mean", read=no_predictions):
    (results,) = backbone_results(group_records(made))
    (analysis,) = analyse([find_differences(results, read)], statistic, reference)
    return analysis


def column(made, task="mrpc", **settings):
    return analysed(made, **settings).ranking.tasks[task]


def paired_t(first, second):
    return scipy.stats.ttest_rel(first, second).pvalue


def test_what_is_not_significantly_different_from_the_best_is_bold_too():
    found = column(records({"best": {"mrpc": BEST}, "second": {"mrpc": SECOND}, "worst": {"mrpc": WORST}}))
    assert found.bold == {"best", "second"}
    assert found.untested == ()
    # Holm over all three pairs: the largest of them stands alone, the smallest is counted three times.
    ps = {"best": paired_t(BEST, WORST), "second": paired_t(SECOND, WORST), "none": paired_t(BEST, SECOND)}
    assert ps["best"] < ps["second"] < 0.05 < ps["none"]
    assert found.p["worst"] == pytest.approx(3 * ps["best"])
    assert found.p["second"] == pytest.approx(ps["none"])


def test_the_correction_is_for_every_pair_as_the_best_was_picked_by_looking():
    three = {"best": {"mrpc": BEST[:3]}, "worst": {"mrpc": WORST[:3]}, "between": {"mrpc": [0.85, 0.89, 0.86]}}
    ps = sorted([
        paired_t(BEST[:3], WORST[:3]), paired_t(BEST[:3], [0.85, 0.89, 0.86]), paired_t(WORST[:3], [0.85, 0.89, 0.86]),
    ])  # fmt: skip
    assert min(column(records(three)).p.values()) == pytest.approx(3 * ps[0])


def test_with_too_few_seeds_nothing_is_bold_and_a_note_says_so():
    made = records({"a": {"mrpc": [0.8, 0.9]}, "b": {"mrpc": [0.7, 0.8]}, "c": {"mrpc": [0.8, 0.9]}})
    (table,) = results_tables(made)
    assert table.bold == frozenset()
    assert "nothing is bold: too few seeds or data sets for a test" in table.notes
    assert not any(note.startswith("bold: ") for note in table.notes)


def test_a_method_without_a_test_is_not_bold_and_is_named():
    """Not even one that was ahead in its only run."""
    made = records({"a": {"mrpc": BEST}, "b": {"mrpc": WORST}, "once": {"mrpc": [0.99]}})
    found = column(made)
    assert (found.bold, found.untested) == ({"a"}, ("once",))
    (table,) = results_tables(made)
    assert "mrpc acc: no test against the best, for want of seeds: once" in table.notes


def test_the_note_says_what_bold_means():
    (table,) = results_tables(records({"a": {"mrpc": BEST}, "b": {"mrpc": WORST}}))
    (note,) = [note for note in table.notes if "bold" in note]
    assert note.startswith("bold: the best mean of a column and all that are not significantly different from it (p >=")


def test_nothing_is_bold_where_there_is_nothing_to_compare():
    (table,) = results_tables(records({"a": {"mrpc": BEST}}))
    assert table.bold == frozenset()
    assert "avg rank" not in table.header
    assert not any("bold" in note for note in table.notes)


def test_of_errors_the_lowest_is_best():
    made = [record("low", "stsb", seed, 0.2 + seed / 100, error_metric=True) for seed in range(4)]
    made += [record("high", "stsb", seed, 0.4 + seed**2 / 100, error_metric=True) for seed in range(4)]
    assert column(made, "stsb").bold == {"low"}
    (one,) = analysed(made, "low").comparisons
    assert (one.verdict, one.points) == ("worse", False)
    assert sentence(one).startswith("stsb: high − low: −0.2200 [−0.")
    made += [record("low", "mrpc", 0, 0.7), record("high", "mrpc", 0, 0.7)]
    found = analysed(made)
    # Percentages and errors have no mean, but ranks: four blocks of stsb, one tie on mrpc.
    assert found.ranking.averages == {}
    assert found.ranking.ranks == {"low": 5.5 / 5, "high": 9.5 / 5}
    assert all(one.task for one in found.comparisons)


def test_a_column_shows_one_metric():
    """Of a run with another primary metric, the column's, or nothing."""
    made = [record("a", "stsb", 0, 0.8), record("b", "stsb", 0, 0.3, error_metric=True), record("c", "stsb", 0, 0.7)]
    made[1].scores.best["accuracy"] = 0.9
    found = analysed(made).results
    assert [found.scores(method) for method in "abc"] == [{("stsb", 0): score} for score in (0.8, 0.9, 0.7)]
    del made[1].scores.best["accuracy"]
    (table,) = results_tables(made)
    assert [row[table.header.index("stsb acc")] for row in table.rows] == ["80.0", "-", "70.0"]


def test_a_seed_that_was_run_twice_counts_once():
    made = [record("a", "mrpc", 0, 0.8), record("a", "mrpc", 0, 0.9, key="again"), record("b", "mrpc", 0, 0.5)]
    (found,) = analysed(made, "b").comparisons
    assert found.difference.n == 1
    assert found.difference.mean == pytest.approx(0.9 - 0.5)


def test_the_median_is_shown_with_its_range():
    made = records({"a": {"mrpc": [0.1, 0.8, 0.81, 0.8]}, "b": {"mrpc": [0.7, 0.7, 0.7, 0.71]}})
    (table,) = results_tables(made, "median")
    assert table.rows[0][table.header.index("mrpc acc")] == "80.0 (4) [10.0, 81.0]"
    # Tests are on means, whatever picks the best.
    assert [column(made, statistic=name).bold for name in ("mean", "median")] == [{"a", "b"}] * 2


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
    (found,) = analysed(made, "full").comparisons
    # Mean 1.5 points, standard error 0.5477 / sqrt(6), 2.5706 of them on either side; t = 6.708.
    assert sentence(found) == "mrpc: lora − full: +1.5 points [0.9, 2.1], 6 seeds: lora is better (p = 0.0011)"
    (turned,) = analysed(made).comparisons
    assert sentence(turned) == "mrpc: full − lora: −1.5 points [−2.1, −0.9], 6 seeds: full is worse (p = 0.0011)"


def test_no_difference_as_a_sentence():
    (found,) = analysed(records({"full": {"mrpc": BEST}, "lora": {"mrpc": SECOND}}), "full").comparisons
    # Differences 1, -1, 1, -3, 1, -1, 1, -2 sum to -3; -3 / 8 points.
    assert sentence(found).startswith("mrpc: lora − full: −0.4 points [")
    assert "no difference shown (p = " in sentence(found)


def test_too_few_seeds_are_named_once():
    made = records({name: {"mrpc": [0.8 + k, 0.81 + k]} for name, k in (("a", 0), ("b", 0.1), ("c", 0.05))})
    analysis = analysed(made, "a")
    assert [one.verdict for one in analysis.comparisons] == ["not tested", "not tested"]
    assert sentence(analysis.comparisons[0]) == (
        "mrpc: b − a: +10.0 points, 2 seeds: too few for a test (3 are needed, or 2 with predictions, with a spread)"
    )
    notes = comparison_table(analysis).notes
    assert sum("too few" in note for note in notes) == 1
    assert (
        "too few seeds in common for a test (3 are needed, or 2 with predictions, with a spread): mrpc (b, c)" in notes
    )


def test_equal_differences_of_few_seeds_are_a_coincidence():
    made = records({"a": {"mrpc": [0.80, 0.81, 0.83]}, "b": {"mrpc": [0.81, 0.82, 0.84]}})
    assert [one.verdict for one in analysed(made).comparisons] == ["not tested"]


def test_with_a_reference_the_correction_is_for_its_comparisons_alone():
    made = records({"a": {"mrpc": BEST}, "b": {"mrpc": WORST}, "c": {"mrpc": SECOND}})
    against_all = {(one.method, one.reference): one for one in analysed(made).comparisons}
    assert {one.family for one in against_all.values()} == {3}
    named = analysed(made, "a").comparisons
    assert [(one.method, one.family) for one in named] == [("b", 2), ("c", 2)]
    assert named[0].p == pytest.approx(2 * paired_t(BEST, WORST))


def test_methods_without_a_common_seed_are_named():
    analysis = analysed([record("a", "mrpc", 0, 0.8), record("b", "mrpc", 1, 0.9)])
    assert [sentence(one) for one in analysis.comparisons] == ["mrpc: a − b: no seed that both finished"]


def test_an_unknown_reference_is_answered_with_the_known_ones():
    made = records({"a": {"mrpc": [0.8]}, "b": {"mrpc": [0.9]}})
    with pytest.raises(RequestError, match="--compare c: no finished run of it here; there are a, b"):
        analysed(made, "c")


def over_tasks(tasks, seeds=2):
    """`b` is one to seven points behind `a` on these tasks."""
    behind = {task: (number + 1) / 100 for number, task in enumerate(tasks)}
    return records({
        "a": {task: [0.8] * seeds for task in tasks},
        "b": {task: [0.8 - behind[task]] * seeds for task in tasks},
    })  # fmt: skip


def test_data_sets_are_the_unit_over_tasks():
    analysis = analysed(over_tasks(TASKS), "a")
    (found,) = [one for one in analysis.comparisons if one.task is None]
    # Seven data sets with one sign, whatever the number of seeds.
    assert (found.difference.n, found.p) == (7, 2 / 2**7)
    assert found.difference.mean == pytest.approx(-0.04)
    assert sentence(found).startswith(
        "over data sets: b − a: −4.0 points [−6.0, −2.0], 7 data sets: b is worse (p = 0.016)"
    )
    assert analysis.ranking.average.bold == {"a"}


def test_fewer_than_six_data_sets_say_nothing_about_others():
    analysis = analysed(over_tasks(TASKS[:5], seeds=8))
    (found,) = [one for one in analysis.comparisons if one.task is None]
    assert (found.p, found.verdict) == (None, "not tested")
    assert sentence(found).endswith("5 data sets: too few to say anything about others (6 are needed)")
    assert analysis.ranking.average.bold == frozenset()
    assert "5 data sets are too few to say anything about others (6 are needed)" in comparison_table(analysis).notes


def test_subsets_of_one_data_set_are_one_unit():
    made = over_tasks(TASKS)
    for one in made:
        if one.protocol.task in TASKS[:4]:
            # Four numbers of training rows of one task, as a study names them.
            one.protocol.task = "several numbers of rows"
    analysis = analysed(made)
    assert analysis.differences.data_sets == [TASKS[:4], *[[task] for task in TASKS[4:]]]
    (found,) = [one for one in analysis.comparisons if one.task is None]
    # The mean over four data sets: 2.5, 5, 6 and 7 points.
    assert (found.difference.n, found.p) == (4, None)
    assert found.difference.mean == pytest.approx(-(0.025 + 0.05 + 0.06 + 0.07) / 4)
    assert "cola, mrpc, qnli, qqp are scored on the same rows: one data set" in comparison_table(analysis).notes


def test_comparisons_over_data_sets_use_the_tasks_that_both_finished():
    made = [one for one in over_tasks(TASKS) if (one.config["method"]["name"], one.protocol.task) != ("b", "wnli")]
    (found,) = [one for one in analysed(made).comparisons if one.task is None]
    assert found.tasks == tuple(TASKS[:6])
    assert (found.difference.n, found.p) == (6, 2 / 2**6)
    # The column of averages has only methods with every task.
    assert analysed(made).ranking.average.bold == frozenset()


IDS = np.array([f"{number:016x}" for number in range(200)])
LABELS = np.arange(200) % 2


def with_rows(wrong):
    """Records and their predictions, from the rows that are wrong, by method and seed."""
    made, kept = [], {}
    for method, by_seed in wrong.items():
        for seed, rows in enumerate(by_seed):
            one = record(method, "mrpc", seed, 1 - len(rows) / 200)
            outputs = np.eye(2, dtype=np.float32)[LABELS]
            outputs[rows] = 1 - outputs[rows]
            made.append(one)
            kept[one.run_key] = Predictions(IDS, LABELS, outputs)
    return made, lambda one: kept.get(one.run_key)


def test_two_single_runs_are_compared_row_by_row():
    made, read = with_rows({"full": [list(range(12))], "lora": [[20, 21]]})
    (found,) = analysed(made, "full", read=read).comparisons
    # 12 rows that only lora has right against 2 that only full has.
    assert found.p == pytest.approx(0.0129, abs=5e-5)
    assert sentence(found) == (
        "mrpc: lora − full: +5.0 points [1.4, 8.6], one run each on 200 rows, which differ on 14: this run of lora is "
        "better (p = 0.013); another seed may give another order"
    )
    # They say nothing about methods.
    assert analysed(made, read=read).ranking.tasks["mrpc"].bold == frozenset()
    close, read = with_rows({"full": [[0, 1, 2]], "lora": [[2, 3]]})
    (found,) = analysed(close, "full", read=read).comparisons
    assert sentence(found).endswith("one run each on 200 rows, which differ on 3: no difference shown (p = 1)")


def test_seeds_and_rows_are_both_chance():
    rng = np.random.default_rng(0)
    wrong = {
        name: [list(np.flatnonzero(rng.random(200) < share)) for _ in range(3)]
        for name, share in (("full", 0.1), ("lora", 0.3))
    }
    made, read = with_rows(wrong)
    (found,) = analysed(made, "full", read=read).comparisons
    right = {name: np.array([~np.isin(np.arange(200), rows) for rows in by_seed]) for name, by_seed in wrong.items()}
    rows = right["lora"].astype(float) - right["full"]
    assert found.difference.estimate == over_seeds_and_rows(rows, pytest.approx(rows.mean()))
    assert (found.difference.test, found.difference.rows, found.verdict) == ("seeds and rows", 200, "worse")
    assert sentence(found).partition("], ")[2].startswith("3 seeds x 200 rows: lora is worse")
    (note,) = [note for note in comparison_table(analysed(made, "full", read=read)).notes if "standard error" in note]
    assert note.startswith("mrpc: 3 seeds x 200 rows show differences of about ")


def test_rows_are_paired_by_their_ids():
    made, read = with_rows({"full": [[0, 1], [3]], "lora": [[20, 21], [5]]})
    shuffled = np.random.default_rng(1).permutation(200)

    def reordered(one):
        kept = read(one)
        if one.config["method"]["name"] == "full":
            return kept
        return Predictions(kept.row_ids[shuffled], kept.labels[shuffled], kept.outputs[shuffled])

    assert analysed(made, read=read).comparisons == analysed(made, read=reordered).comparisons


def test_runs_scored_on_other_rows_are_compared_over_seeds_alone(caplog):
    made, read = with_rows({"full": [[0, 1], [3], [4]], "lora": [[20, 21], [5], [7, 9]]})

    def other(one):
        kept = read(one)
        ids = np.char.add(kept.row_ids, "x") if one.config["method"]["name"] == "lora" else kept.row_ids
        return Predictions(ids, kept.labels, kept.outputs)

    (found,) = analysed(made, read=other).comparisons
    assert found.difference.test == "seeds"
    assert "mrpc: runs whose predictions are of other rows than the first run's: 3" in caplog.text


def test_shared_rows_make_one_data_set_whatever_the_tasks_are_called():
    made, read = with_rows({"full": [[0]], "lora": [[1]]})
    again, _ = with_rows({"full": [[0]], "lora": [[1]]})
    for one in again:
        one.config["task"]["name"] = one.protocol.task = "the same rows"
        one.run_key += "again"
    analysis = analysed([*made, *again], read=lambda one: read(record("full", "mrpc", 0, 0)))
    assert analysis.differences.data_sets == [["mrpc", "the same rows"]]


def test_json_has_every_comparison_with_its_numbers():
    made, read = with_rows({"full": [[0, 1], [3], [4]], "lora": [[20, 21], [5], [7, 9]]})
    content = json.loads(to_json([analysed(made, read=read)], {}))
    (row,) = content["comparisons"]
    assert row["test"] == "seeds and rows"
    assert row["verdict"] == "no difference shown"
    assert row["seeds_error"] > 0
    assert row["corrected_for"] == 1
    assert content["data_sets"] == {"minilm": [["mrpc"]]}
    assert {group["bold"] for group in content["groups"]} == {True}


def test_of_equal_methods_the_first_is_the_best():
    found = column(records({"a": {"mrpc": BEST}, "b": {"mrpc": BEST}, "worst": {"mrpc": WORST}}))
    assert found.bold == {"a", "b"}
    assert list(found.p) == ["b", "worst"]
    assert found.p["b"] == 1
