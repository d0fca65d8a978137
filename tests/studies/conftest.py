"""`petl-bench choose` called in this process."""

from __future__ import annotations

import pytest

from petl_bench.cli import main
from petl_bench.estimate import plan
from petl_bench.studies import choice as choice_module
from studies.tickets import write_tickets


@pytest.fixture
def choose(tmp_path, monkeypatch, capsys, estimates_here):
    """Runs `petl-bench choose` in this process: gives the exit code, standard output and error."""
    monkeypatch.setattr(choice_module, "_WITHOUT_TIME", (2, 0, 3))
    # Drawn in one test, as it takes as long as some trainings.
    monkeypatch.setattr("petl_bench.reports.report._draw", lambda *_: None)
    # This process began with the first test.
    monkeypatch.setattr("petl_bench.process.process_seconds", lambda: 0.0)
    monkeypatch.setattr(choice_module, "estimate_all", plan.estimate_all)
    monkeypatch.chdir(tmp_path)
    write_tickets(tmp_path / "tickets.csv")

    def call(*words):
        code = main(["choose", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
