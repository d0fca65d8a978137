"""Tables fit: the terminal's width, the user or the page decides which columns are shown."""

from __future__ import annotations

import pytest

from petl_bench.cli import main
from petl_bench.errors import RequestError
from petl_bench.records.store import RunFolder
from petl_bench.reports.fields import score_text, shown_score
from petl_bench.reports.render import (
    ReportTable,
    choose_columns,
    fitted,
    for_a_page,
    print_table,
    to_markdown,
    with_columns,
)
from petl_bench.reports.results_table import study_results
from petl_bench.reports.tables import scores_table
from reports.generated import analyses, record, records, results_tables, study

SCORES = {name: {f"task{n}": [0.8, 0.81, 0.79] for n in range(4)} for name in ("lora", "full")}


def wide_table():
    (table,) = results_tables(records(SCORES))
    return table


TABLE = ReportTable(
    "title",
    ["name", "aaaa", "bbbb", "cc", "dd"],
    [["x", "1", "2", "3", "4"]],
    ["aaaa: the first", "cc: the third", "a note on all"],
    frozenset({(0, 3)}),
    priority=(("name",), ("dd",), ("bbbb", "cc")),
)


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        # Widths with a space each: name 5, dd 3, bbbb and cc 8, aaaa 5.
        (21, ["name", "aaaa", "bbbb", "cc", "dd"]),
        (20, ["name", "bbbb", "cc", "dd"]),
        (16, ["name", "bbbb", "cc", "dd"]),
        # The group does not fit, what comes after it does.
        (15, ["name", "aaaa", "dd"]),
        (3, ["name", "dd"]),
    ],
)
def test_the_width_decides_and_the_most_asked_come_first(width, columns):
    shown = fitted(TABLE, width)
    assert shown.header == columns
    assert shown.rows == [[dict(zip(TABLE.header, TABLE.rows[0], strict=True))[name] for name in columns]]


def test_what_is_left_out_is_named_and_its_definition_goes_too():
    shown = fitted(TABLE, 15)
    assert shown.notes == [
        "aaaa: the first",
        "a note on all",
        "columns for which there is no room, see --wide: bbbb, cc",
    ]
    assert shown.bold == frozenset()
    assert fitted(TABLE, 20).bold == {(0, 2)}


def test_a_terminal_gets_what_fits_and_a_file_gets_all(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(wide_table())
    everything = capsys.readouterr().out
    assert "no room" not in everything
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(wide_table())
        table, _, notes = capsys.readouterr().out.partition("  task0: 100 training rows")
        assert max(map(len, table.splitlines())) <= width
        assert "no room, see --wide: " in notes


def test_a_page_has_ten_columns_and_memory_never_without_its_batch():
    table = for_a_page(wide_table())
    assert len(table.header) == 10
    assert {"estimated MiB", "batch", "avg"} < set(table.header)
    assert len(to_markdown(table).splitlines()[2].split(" | ")) == 10
    for width in range(30, 160):
        header = fitted(wide_table(), width).header
        assert ("estimated MiB" in header) == ("batch" in header)


def test_columns_are_chosen_by_name_or_how_it_begins():
    (table,) = choose_columns([wide_table()], ["BATCH", "task1", "estimated"])
    assert table.header == ["method", "task1 acc", "estimated MiB", "batch"]
    assert [note for note in table.notes if note.startswith(("batch: ", "step GFLOP: "))] == [
        "batch: rows of one update, for which memory and operations are given"
    ]
    # Chosen ones are all shown.
    assert fitted(table, 10).header == for_a_page(table).header == table.header


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "nothing is no column"), ("task", "task may be task0 acc or")]
)
def test_an_unknown_name_lists_the_known_ones(name, message):
    with pytest.raises(RequestError, match=f"--columns: {message}.* it has method, seeds, task0 acc"):
        choose_columns([wide_table()], [name])


def test_the_first_words_of_a_name_suffice():
    made = [record(method, task, 0, 0.8) for method in ("a", "b") for task in ("sst2", "sst2_100")]
    (table,) = results_tables(made)
    assert choose_columns([table], ["sst2"])[0].header == ["method", "sst2 acc"]


def test_a_table_without_a_chosen_column_has_the_others():
    narrow = with_columns(wide_table(), {"method", "seeds", "task0 acc"})
    tables = choose_columns([wide_table(), narrow], ["task0", "batch"])
    assert [table.header for table in tables] == [["method", "task0 acc", "batch"], ["method", "task0 acc"]]


def test_the_command_chooses(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for number, one in enumerate(records(SCORES)):
        RunFolder(tmp_path / str(number)).write(one)
    assert main(["report", str(tmp_path), "--format", "md", "--columns", "task3, seeds"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "| method | seeds | task3 acc |"
    assert main(["report", str(tmp_path), "--wide"]) == 0
    assert "no room" not in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--format", "csv", "--columns", "seeds"]) == 2
    assert "leave out --columns" in capsys.readouterr().err


def test_methods_without_any_run_are_named_below():
    found = study(["lora", "full", "head"], ["mrpc"], 1)
    made = [record("lora", "mrpc", 0, 0.8), record("head", "mrpc", 0, 0, status="diverged")]
    (analysis,) = analyses([study_results(found, made)])
    table = scores_table(analysis)
    assert [row[0] for row in table.rows] == ["LORA", "HEAD"]
    assert "no run yet: FULL" in table.notes
    (analysis,) = analyses([study_results(found, [])])
    assert len(scores_table(analysis).rows) == 3


def test_scores_are_rounded_in_one_place():
    assert score_text(0.81249, in_percent=True) == "81.2"
    assert score_text(-0.001, in_percent=True, sign=True) == "-0.1"
    assert score_text(0.31249, in_percent=False) == "0.3125"
    assert shown_score("accuracy", 0.5) == "accuracy 50.0 %"
    assert shown_score("mean_squared_error", 0.5) == "mean_squared_error 0.5000"
