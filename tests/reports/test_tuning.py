"""Tuning curves of a search: against opda and by hand, in words, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from petl_bench.records.schema import Time
from petl_bench.records.store import find_record_files, read_record
from petl_bench.records.study_file import read_study
from petl_bench.reports.cost_columns import search_costs, search_table
from petl_bench.reports.plots.tuning import TuningCurve, tuning_curve, tuning_curves, tuning_sentences

pytest.importorskip("opda", reason="the extra `search` is not installed")


def test_of_scores_in_the_same_order_the_band_is_opdas():
    from opda.nonparametric import EmpiricalDistribution

    scores = [0.3, 0.5, 0.61, 0.62, 0.7, 0.71]
    found = tuning_curve([score / 2 for score in scores], scores, 0.0, 1.0)
    bands = EmpiricalDistribution.confidence_bands(
        np.array(scores), 0.8, a=0.0, b=1.0, generator=np.random.default_rng(0), n_jobs=1
    )
    counts = np.arange(1, 7)
    for row, band in zip((2, 0, 1), bands, strict=True):
        assert found[row] == pytest.approx(band.quantile_tuning_curve(counts), abs=1e-12)
    # The best of n is at most m with probability (k / 6) ** n where k scores are at most m; it reaches a half for
    # n = 1 at k = 3, for n = 2 at k = 5 (25 / 36 against 16 / 36).
    assert found[0, :2] == pytest.approx([0.61, 0.7])
    assert np.all(found[1] <= found[0])
    assert np.all(found[0] <= found[2])


def test_what_is_best_on_the_selection_rows_alone_is_not_reported_as_the_best():
    """The third trial looks best where settings are chosen and is worst where they are reported."""
    found = tuning_curve([0.5, 0.6, 0.9], [0.6, 0.8, 0.4], 0.0, 1.0)
    # Isotonic regression pools all three: 0.6.
    assert found[0] == pytest.approx([0.6, 0.6, 0.6])


def curve(method, *scores):
    values = np.array(scores)
    return TuningCurve("fair", method, "cola", "matthews", 100, values, values, values)


def test_the_spread_and_how_many_methods_change_places_are_told_in_words():
    lora, full = curve("lora", 0.3, 0.5, 0.6), curve("full", 0.4, 0.45, 0.58)
    # Equal at first, then ahead: this is no change of places.
    tied = curve("head", 0.3, 0.4, 0.4)
    assert tuning_sentences([lora, full, tied]) == [
        "cola: at one random trial the medians of the methods lie 10.0 points apart, at the best of 3 trials 20.0; "
        "1 of 3 pairs of methods change places (not tested)"
    ]
    assert tuning_sentences([lora]) == []


def test_a_band_without_an_upper_end_has_none():
    """As fair_small has it: from 3 of 12 trials on, the best may be better than any that was seen."""
    folder = Path(__file__).parents[2] / "results" / "fair_small"
    study, records = read_study(folder), [read_record(file) for file in find_record_files([folder])]
    curves = tuning_curves([(study, records)])
    assert len(curves) == 32
    highs = [[high for *_, high in curve.to_dict()["points"]] for curve in curves]
    assert all(high is not None for ends in highs for high in ends[:1])
    assert all(high is None for ends in highs for high in ends[2:])


def test_trials_that_failed_count_as_worse_than_any_other():
    folder = Path(__file__).parents[2] / "results" / "fair_small"
    study, records = read_study(folder), [read_record(file) for file in find_record_files([folder])]
    of_lora = [run.key for run in study.runs if (run.is_trial, run.method, run.task) == (True, "lora", "sst2_1000")]
    failed = [
        dataclasses.replace(record, status="diverged", scores=None) if record.run_key in of_lora[:7] else record
        for record in records
    ]

    def points(some):
        curves = tuning_curves([(study, some)])
        return next(c for c in curves if (c.method, c.task) == ("lora", "sst2_1000")).to_dict()["points"]

    # Seven of twelve fail: so does the median trial, and the best of many is one of the others.
    assert len(points(failed)) == 12
    assert points(failed)[0][1] == 0.0
    assert points(failed)[-1][1] > 70
    assert points(records)[0][1] > 70


def test_curves_of_two_studies_are_not_compared():
    lora, full = curve("lora", 0.3, 0.5), dataclasses.replace(curve("full", 0.4, 0.45), study="other")
    assert tuning_sentences([lora, full]) == []


def test_every_method_had_as_many_trials_and_updates_and_unknown_times_are_no_zero():
    folder = Path(__file__).parents[2] / "results" / "fair_small"
    study, records = read_study(folder), [read_record(file) for file in find_record_files([folder])]
    costs = search_costs(study, records)
    assert [(cost["trials"], cost["runs"], cost["failed"], cost["seconds"]) for cost in costs] == [
        (48, 48, 0, None)
    ] * 8
    assert len({cost["updates"] for cost in costs}) == 1
    assert {row[5] for row in search_table(study, records).rows} == {"-"}

    lasted = Time(50.0, 8.0, 2.0, 100.0, 1000.0, 0.1)
    timed = [dataclasses.replace(record, time=lasted) for record in records]
    assert {row[5] for row in search_table(study, timed).rows} == {"48.0"}
