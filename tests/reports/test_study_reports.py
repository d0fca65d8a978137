"""Reports on a study: its names and order, what is missing, what was only planned."""

from __future__ import annotations

import csv
import io
import json
import logging

import pytest

from petl_bench.cli import main
from petl_bench.errors import RequestError
from petl_bench.records.store import RunFolder
from petl_bench.records.study_file import PlannedCosts, PlannedRun
from petl_bench.reports.report import read_report_input, write_report
from petl_bench.reports.results_table import study_results
from petl_bench.reports.tables import scores_table
from reports.generated import analyses, record, records, study


def shown(a_study, made, statistic="mean"):
    """The table's rows by method, each by column."""
    (analysis,) = analyses([study_results(a_study, made)], statistic)
    table = scores_table(analysis, statistic)
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}, table


def write(folder, made, a_study=None):
    for number, one in enumerate(made):
        RunFolder(folder / str(number)).write(one)
    if a_study:
        a_study.write(folder)
    return folder


COMPLETE = {"lora": {"mrpc": [0.80, 0.82], "rte": [0.6, 0.7]}, "full": {"mrpc": [0.9, 0.8], "rte": [0.7, 0.6]}}


def test_rows_and_columns_come_in_the_order_of_the_study_by_its_names():
    rows, table = shown(study(["full", "lora"], ["rte", "mrpc"], 2), records(COMPLETE))
    assert list(rows) == ["FULL", "LORA"]
    assert [name for name in table.header if name.endswith(" acc")] == ["RTE acc", "MRPC acc"]
    assert rows["LORA"]["MRPC acc"] == "81.0 ± 1.4"
    assert rows["LORA"]["seeds"] == "2"
    assert table.title == "a_study (minilm): mean ± sd over seeds"


def test_what_is_missing_is_seen():
    made = [one for one in records(COMPLETE) if one.run_key not in ("lora-mrpc-1", "full-rte-0", "full-rte-1")]
    made.append(record("full", "rte", 1, 0.0, status="diverged"))
    rows, table = shown(study(["full", "lora", "head"], ["mrpc", "rte"], 2), made)
    assert rows["LORA"]["MRPC acc"] == "80.0 (1/2)"
    assert rows["LORA"]["seeds"] == "1-2/2"
    assert rows["FULL"]["RTE acc"] == "diverged"
    assert rows["FULL"]["avg"] == "-"
    assert rows["FULL"]["seeds"] == "0-2/2"
    assert "HEAD" not in rows
    assert "no run yet: HEAD" in table.notes
    assert any(note.startswith("(2/3)") for note in table.notes)
    medians, _ = shown(study(["lora"], ["mrpc"], 2), made, "median")
    assert medians["LORA"]["MRPC acc"] == "80.0 (1/2)"


def test_several_ends_of_runs_are_all_named_and_a_repetition_replaces_its_failure():
    made = [record("lora", "mrpc", 0, 0, status="diverged"), record("lora", "mrpc", 1, 0, status="out_of_memory")]
    rows, _ = shown(study(["lora"], ["mrpc"], 2), made)
    assert rows["LORA"]["MRPC"] == "diverged, out_of_memory"
    for repeated in ([*made, record("lora", "mrpc", 0, 0.8)], [record("lora", "mrpc", 0, 0.8), *made]):
        rows, _ = shown(study(["lora"], ["mrpc"], 2), repeated)
        assert rows["LORA"]["MRPC acc"] == "80.0 (1/2)"


def test_rates_that_were_not_chosen_are_left_out_and_open_ones_are_named():
    a_study = study(["lora", "full"], ["mrpc"], 1)
    a_study.runs = [
        PlannedRun("LORA", "MRPC", 0, "slow", "folder", [], learning_rate=1e-5, chosen=False),
        PlannedRun("LORA", "MRPC", 0, "fast", "folder", [], learning_rate=1e-3, chosen=True),
        PlannedRun("FULL", "MRPC", 0, "one", "folder", [], learning_rate=1e-5, chosen=None),
        PlannedRun("FULL", "MRPC", 0, "other", "folder", [], learning_rate=1e-3, chosen=None),
    ]
    made = [record("lora", "mrpc", 0, 0.1, key="slow"), record("lora", "mrpc", 0, 0.8, key="fast")]
    made += [record("full", "mrpc", 0, 0.7, key="one"), record("full", "mrpc", 0, 0.6, key="other")]
    rows, table = shown(a_study, made)
    assert rows["LORA"]["MRPC acc"] == "80.0"
    assert rows["FULL"]["MRPC acc"] == "rate open"
    assert any(note.startswith("rate open: ") for note in table.notes)


def test_before_the_first_run_the_table_shows_what_was_planned():
    costs = [
        PlannedCosts("LORA", "MRPC", 1234, 10, 0.5, 3 * 2**20),
        PlannedCosts("LORA", "RTE", 1234, 20, 0.75, 4 * 2**20),
        PlannedCosts("FULL", "MRPC", note="could not be counted"),
    ]
    rows, table = shown(study(["lora", "full"], ["mrpc", "rte"], 2, costs=costs, deviations=["fewer rows"]), [])
    lora = rows["LORA"]
    # The costliest task's, as of measured costs.
    assert (lora["method params"], lora["head params"], lora["% of backbone"]) == ("1,234", "20", "0.750")
    assert (lora["estimated MiB"], lora["MRPC"], lora["seeds"]) == ("4", "-", "0/2")
    assert rows["FULL"]["method params"] == rows["FULL"]["estimated MiB"] == "-"
    assert "counted by plan, not run: parameters and estimated memory of LORA" in table.notes
    assert "FULL: could not be counted" in table.notes
    assert "deviation: fewer rows" in table.notes
    made = [record("lora", "mrpc", 0, 0.8)]
    rows, table = shown(study(["lora"], ["mrpc", "rte"], 2, costs=costs), made)
    assert (rows["LORA"]["method params"], rows["LORA"]["estimated MiB"]) == ("5", "5")
    assert not any("counted by plan" in note for note in table.notes)


@pytest.fixture
def logged(caplog):
    """What is said while reporting."""
    caplog.set_level(logging.INFO, "petl_bench")
    return caplog


def test_records_of_others_are_left_out_and_logged(tmp_path, logged):
    made = [*records(COMPLETE), record("head", "mrpc", 0, 0.5), record("head", "mrpc", 1, 0, status="diverged")]
    (results,) = read_report_input(
        [str(write(tmp_path, made, study(["lora", "full"], ["mrpc", "rte"], 2)))]
    ).all_results
    assert {group.label for group in results.groups()} == {"LORA", "FULL"}
    assert any("not the study's" in message and message.endswith(": 2") for message in logged.messages)
    assert not any("diverged" in message for message in logged.messages)


def test_what_is_not_finished_is_listed_on_the_page(tmp_path):
    made = [one for one in records(COMPLETE) if one.run_key != "lora-mrpc-1"]
    folder = write(tmp_path, made, study(["lora", "full"], ["mrpc", "rte"], 2))
    page = tmp_path / "page.html"
    write_report([str(folder)], "csv", None, lambda _: None, page=str(page))
    assert '"missing":["LORA on MRPC (1 of 2 seeds)"]' in page.read_text()


def test_a_study_and_other_runs_are_tables_of_their_own(tmp_path):
    folders = [
        write(tmp_path / "study", records(COMPLETE), study(["lora", "full"], ["mrpc", "rte"], 2)),
        write(tmp_path / "others", records(COMPLETE)),
    ]
    written = []
    write_report([str(folder) for folder in folders], "md", None, written.append)
    titles = [line for line in written[0].splitlines() if line.startswith("**")]
    assert titles == [
        "**a_study (minilm): mean ± sd over seeds**",
        "**minilm: mean ± sd over seeds**",
        "**a_study (minilm): comparisons with the best mean**",
        "**minilm: comparisons with the best mean**",
    ]


def test_csv_and_json_hold_every_cell_of_the_study(tmp_path):
    made = [one for one in records(COMPLETE) if one.run_key != "lora-rte-1"]
    costs = [PlannedCosts("HEAD", "MRPC", 0, 10, 0.1, 2**20)]
    folder = write(tmp_path, made, study(["full", "lora", "head"], ["mrpc", "rte"], 2, costs=costs))
    written = []
    write_report([str(folder)], "csv", None, written.append)
    write_report([str(folder)], "json", None, written.append)
    rows = {(row["method"], row["task"]): row for row in csv.DictReader(io.StringIO(written[0]))}
    assert len(rows) == 6
    lora = rows["LORA", "MRPC"]
    assert (float(lora["mean"]), lora["n"], lora["planned"], lora["rank"], lora["seeds"]) == (
        pytest.approx(0.81),
        "2",
        "2",
        "2.0",
        "0 1",
    )
    # Two values have no interval.
    assert (lora["ci_low"], lora["ci_high"]) == ("", "")
    assert (rows["HEAD", "MRPC"]["n"], rows["HEAD", "MRPC"]["mean"], rows["HEAD", "MRPC"]["counted"]) == (
        "0",
        "",
        "plan",
    )
    content = json.loads(written[1])
    assert len(content["groups"]) == 6
    averages = {row["method"]: row["average"] for row in content["methods"]}
    assert averages == {"FULL": pytest.approx(0.75), "LORA": pytest.approx((0.81 + 0.6) / 2), "HEAD": None}
    on_mrpc, on_rte, over_both = content["comparisons"]
    # mrpc: -10 and 2 points; rte, seed 0: -10.
    assert on_mrpc["difference"] == pytest.approx((-0.1 + 0.02) / 2)
    assert on_rte["difference"] == pytest.approx(-0.1)
    assert over_both["difference"] == pytest.approx((-0.04 - 0.1) / 2)
    assert [one["n"] for one in content["comparisons"]] == [2, 1, 2]
    assert {(one["method"], one["reference"]) for one in content["comparisons"]} == {("LORA", "FULL")}
    assert {one["verdict"] for one in content["comparisons"]} == {"not tested"}


def test_a_study_without_finished_runs_is_reported_and_an_empty_folder_is_not(tmp_path, logged):
    written = []
    folder = write(tmp_path / "study", [], study(["lora"], ["mrpc"], 2))
    write_report([str(folder)], "md", str(tmp_path / "plot.png"), written.append)
    assert "| LORA | 0/2 |" in written[0]
    assert any("no plot" in message for message in logged.messages)
    with pytest.raises(RequestError, match="No finished run"):
        write_report(
            [str(write(tmp_path / "empty", [record("lora", "mrpc", 0, 0, status="failed")]))], "md", None, print
        )


def test_the_command_takes_statistic_and_reference(tmp_path, capsys):
    folder = str(write(tmp_path, records(COMPLETE), study(["full", "lora"], ["mrpc", "rte"], 2)))
    assert main(["report", folder, "--statistic", "median", "--compare", "LORA"]) == 0
    out = capsys.readouterr().out
    assert "median (n) [lowest, highest] over seeds" in out
    assert "81.0 (2) [80.0, 82.0]" in out
    assert "comparisons with LORA" in " ".join(out.split())
    needed = "3 are needed, or 2 with predictions, with a spread"
    assert f"too few seeds in common for a test ({needed}): MRPC (FULL); RTE (FULL)" in " ".join(out.split())
    assert main(["report", folder, "--compare", "nothing"]) == 2
    assert "there are FULL, LORA" in capsys.readouterr().err
