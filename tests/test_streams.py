"""Standard output and error that cannot take what is written: other characters, exit codes and one sentence."""

from __future__ import annotations

import io
import os
import sys

import pytest

from petl_bench import cli
from petl_bench.process import print_error
from petl_bench.reports.render import ReportTable, print_table

TABLE = ReportTable("scores ± sd", ["method", "score"], [["a − b", "1.5 ± 0.2"]], ["x ≤ y, naïve"])


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", ["scores +- sd", "a - b", "1.5 +- 0.2", "x <= y, na\\xefve"]),
        ("latin-1", ["scores ± sd", "a - b", "1.5 ± 0.2", "x <= y, naïve"]),
        ("cp1252", ["scores ± sd", "a - b", "1.5 ± 0.2", "x <= y, naïve"]),
        ("utf-8", ["scores ± sd", "a − b", "1.5 ± 0.2", "x ≤ y, naïve"]),
    ],
)
def test_characters_that_the_encoding_lacks(monkeypatch, encoding, written):
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding=encoding))
    monkeypatch.setattr(cli, "_dispatch", lambda _: print_table(TABLE) or 0)
    assert cli.main(["report"]) == 0
    shown = kept.getvalue().decode(encoding)
    assert all(words in shown for words in written)


@pytest.fixture
def listed(monkeypatch, capsys):
    """Runs `petl-bench list recipes` into a stream; returns the exit code and the messages."""

    def call(stream):
        monkeypatch.setattr(sys, "stdout", stream)
        return cli.main(["list", "recipes"]), capsys.readouterr().err

    return call


def test_a_full_disk_under_standard_output_is_told(listed):
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        code, err = listed(full)
    assert code == 1
    assert err == (
        "petl-bench: Standard output cannot be written: No space left on device. "
        "Free disk space or redirect it elsewhere.\n"
    )


def test_a_reader_that_has_gone_is_no_failure(listed):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        assert listed(gone) == (0, "")


def test_closed_standard_output_is_no_failure(listed):
    assert listed(None) == (0, "")


def test_standard_error_that_is_full_or_closed_keeps_the_exit_code(monkeypatch, capsys):
    for stream in (open("/dev/full", "w", encoding="utf-8", buffering=1), None):  # noqa: PTH123, SIM115
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.main(["report", "nowhere"]) == 2
        print_error(ValueError("nowhere to be seen"))
        if stream is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.close()
    assert capsys.readouterr().out == ""
