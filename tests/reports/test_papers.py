"""Published rows next to the records, against comparisons worked out by hand; both in the report of a study."""

from __future__ import annotations

import json

import pytest

from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.records.store import RunFolder
from petl_bench.records.study_file import Claim, PlannedCosts, PlannedRun, PublishedRow
from petl_bench.reports.claims import claims_table
from petl_bench.reports.papers import paper_tables, published_rows, published_table
from petl_bench.reports.render import to_latex, to_markdown
from petl_bench.reports.report import write_paper_report, write_report
from reports.toy_study import MEASURED, PAPER, key, record, study


def test_published_rows_by_hand():
    on_t, on_u = published_rows(study(published=[PAPER]), MEASURED)
    # 82, 83, 84: mean 83, 2.48 on either side; 84.5 lies within. 69, 70, 71: 75 does not.
    assert on_t["ours_mean"] == pytest.approx(83.0)
    assert on_t["ours_sd"] == pytest.approx(1.0)
    assert on_t["difference"] == pytest.approx(-1.5)
    assert (on_t["value"], on_t["sd"], on_t["n"], on_t["metric"]) == (84.5, 0.3, 3, "accuracy")
    assert (on_t["verdict"], on_u["verdict"]) == ("within our 95 % interval", "outside our 95 % interval")
    assert (on_u["sd"], on_u["comparable"], on_u["why"], on_u["source"]) == (None, True, None, "a paper, table 1")
    assert on_t["ours_params"] == {"method": 43, "head": 10}


def test_another_metric_and_no_method():
    rows = [
        PublishedRow("F1", "a paper", {"t": [73.0]}, method="a", metrics={"t": "f1"}, why="another split"),
        PublishedRow("theirs alone", "a paper", {"t": [73.0]}, why="no such method"),
    ]
    with_f1, alone = published_rows(study(published=rows), MEASURED)
    assert (with_f1["ours_mean"], with_f1["verdict"]) == (pytest.approx(73.0), None)
    assert (alone["ours_mean"], alone["n"], alone["verdict"], alone["ours_params"]) == (None, 0, None, None)


def test_both_halves_of_mnli_count_as_one():
    halves = record(key("a", "t", 0), 0.84)
    halves.scores.best["mismatched_accuracy"] = 0.86
    row = PublishedRow("all", "a paper", {"t": [85.5]}, method="a", metrics={"t": "accuracy+mismatched_accuracy"})
    (found,) = published_rows(study(published=[row], seeds=(0,)), [halves])
    assert found["ours_mean"] == pytest.approx(85.0)
    (without,) = published_rows(study(published=[row]), MEASURED)
    assert without["ours_mean"] is None


def test_published_rows_before_the_runs():
    costs = [PlannedCosts("a", "t", 43, 10, 0.53, 100)]
    on_t, on_u = published_rows(study(published=[PAPER], costs=costs), [])
    assert (on_t["verdict"], on_t["ours_mean"], on_t["n"], on_t["difference"]) == ("not run", None, 0, None)
    assert (on_t["ours_params"], on_u["ours_params"]) == ({"method": 43, "head": 10}, None)
    (one, _) = published_rows(study(published=[PAPER], seeds=(0,)), MEASURED)
    assert (one["n"], one["ours_sd"], one["verdict"]) == (1, None, "too few seeds")


def test_rates_that_were_not_chosen_do_not_count():
    both = study(published=[PAPER], seeds=(0,))
    both.runs = [
        PlannedRun("a", "t", 0, key("a", "t", 0, rate), "folder", [], learning_rate=rate, chosen=chosen)
        for rate, chosen in ((0.1, False), (0.2, True))
    ]
    found = [record(key("a", "t", 0, 0.1), 0.1), record(key("a", "t", 0, 0.2), 0.9)]
    assert published_rows(both, found)[0]["ours_mean"] == pytest.approx(90.0)
    for run in both.runs:
        run.chosen = None
    assert published_rows(both, found)[0]["ours_mean"] is None


def test_the_tables_show_deviations_and_sources():
    held = study(published=[PAPER], claims=[Claim("It is so", "a paper", untestable="no speech")])
    table = published_table(held, MEASURED)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert (row["published"], row["ours"], row["difference"]) == ("84.5 ± 0.3", "83.0 ± 1.0", "-1.5")
    assert (row["our params"], row["params"], row["comparable"]) == ("43 + 10", "0.1M", "yes")
    assert "deviation: toys are small" in table.notes
    assert any("median of 5" in note and "80.0" in note for note in table.notes)
    claims = claims_table(held, MEASURED)
    assert claims.rows == [["It is so", "not testable here", "no speech", "a paper"]]
    assert "deviation: toys are small" in claims.notes
    assert "| --- | ---: | --- | --- |" in to_markdown(claims)
    assert r"{p{0.27\linewidth}rp{0.27\linewidth}p{0.27\linewidth}}" in to_latex(claims)
    assert published_table(study(), MEASURED) is None
    assert claims_table(study(), MEASURED) is None


def test_a_papers_own_layout_has_our_scores_in_its_cells():
    rows = [
        PublishedRow("B of the paper", "table 2", {"u": [71.25], "t": [80.5]}, method="b", why="their test rows"),
        PublishedRow("A, F1", "table 2", {"t": [74.0]}, method="a", metrics={"t": "f1"}, comparable=True),
        PublishedRow("theirs alone", "table 2", {"u": [60]}, why="another method", average=61),
        PAPER,
    ]
    second, first = paper_tables(study(published=rows), MEASURED)
    assert (second.title, first.title) == ("toy: table 2", "toy: a paper, table 1")
    # In the order in which the paper names its tasks, not the study.
    assert second.header == ["method", "u acc", "t acc", "t f1", "average"]
    # Ours: u 70, 70, 70; t 80, 80, 80; f1 of a is ten points less than 82, 83, 84.
    assert second.rows == [
        ["B of the paper", "70.0 ± 0.0 (71.25)*", "80.0 ± 0.0 (80.5)*", "-", "-"],
        ["A, F1", "-", "-", "73.0 ± 1.0 (74.0)", "-"],
        ["theirs alone", "- (60.0)*", "-", "-", "(61.0)"],
    ]
    assert first.rows == [["A of the paper", "83.0 ± 1.0 (84.5 ± 0.3)", "70.0 ± 1.0 (75.0)", "(80.0)"]]
    assert "* not comparable with ours, for the reason given below" in second.notes
    assert any("their test rows" in note for note in second.notes)
    assert not any(note.startswith("*") or "their test rows" in note for note in first.notes)
    assert paper_tables(study(), MEASURED) == []


@pytest.fixture
def folder(tmp_path):
    """A study's folder with one finished run."""
    cfg = load_config(["task=smoke"])
    done = record(key("a", "t", 0), 0.82, task="smoke")
    done.config = cfg.to_dict()
    RunFolder(tmp_path / "run").write(done)
    claim = Claim("a trains 0.53 %", "a paper", {"kind": "share_at_most", "method": "a", "percent": 1})
    study(published=[PAPER], claims=[claim], seeds=(0,)).write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", ["md", "latex", "table"])
def test_the_report_of_a_study_compares_it_with_the_papers(folder, capsys, form):
    written: list[str] = []
    write_report([str(folder)], form, None, written.append)
    text = "".join(written) + capsys.readouterr().out
    for word in ("toy: published and reproduced", "toy: claims", "A of the paper", "not run", "toys are small"):
        assert word in text


def test_the_report_of_a_study_as_json(folder):
    written: list[str] = []
    write_report([str(folder)], "json", None, written.append)
    content = json.loads("".join(written))
    assert [bool(row["scores"]) for row in content["groups"]] == [True, False, False, False]
    assert [row["task"] for row in content["published"]] == ["t", "u"]
    assert content["claims"][0]["verdict"] == "reproduced"
    assert content["claims"][0]["study"] == "toy"
    assert content["deviations"] == {"toy": ["toys are small"]}


@pytest.mark.parametrize("form", ["md", "latex", "table"])
def test_the_papers_layout_in_every_form(folder, capsys, form):
    written: list[str] = []
    write_paper_report([str(folder)], form, written.append)
    text = "".join(written) + capsys.readouterr().out
    cell = r"82.0 (84.5 $\pm$ 0.3)" if form == "latex" else "82.0 (84.5 ± 0.3)"
    for word in ("toy: a paper, table 1", "A of the paper", cell, "toys are small"):
        assert word in text


def test_the_papers_layout_needs_a_published_row(tmp_path):
    RunFolder(tmp_path / "run").write(record(key("a", "t", 0), 0.82))
    study(seeds=(0,)).write(tmp_path)
    with pytest.raises(RequestError, match="names published rows"):
        write_paper_report([str(tmp_path)], "md", print)
    with pytest.raises(RequestError, match="--format table, md or latex"):
        write_paper_report([str(tmp_path)], "json", print)
