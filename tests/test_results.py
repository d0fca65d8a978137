"""The records that are committed: complete, of several seeds, and what their reports were made from."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest

from petl_bench.records.store import read_record
from petl_bench.records.study_file import read_study
from petl_bench.reports.report import write_report

ROOT = Path(__file__).parents[1]
RESULTS = sorted(file.parent for file in (ROOT / "results").glob("*/study.json"))


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_every_run_of_a_committed_study_is_there(folder):
    study = read_study(folder)
    assert len(study.seeds) > 1
    made = [run for run in study.runs if (folder / run.folder).is_dir()]
    assert made == [run for run in study.runs if run.is_asked_for]
    for method in study.methods:
        assert len({run.seed for run in made if run.method == method}) > 1, method
    for run in made:
        record = read_record(folder / run.folder / "result.json")
        assert (record.run_key, record.status) == (run.key, "finished")
        assert None not in dataclasses.astuple(record.protocol), run
        assert record.protocol.seed == run.seed
        # Rows that the package brings need no folder.
        assert not Path(record.config["data_root"] or "").is_absolute()
        assert record.memory.estimate
        assert record.versions["torch"]


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_the_committed_report_is_made_from_the_records(folder):
    written = []
    write_report([str(folder)], "md", None, written.append)
    assert "\n".join(written).strip() == (folder / "report.md").read_text().strip()


@pytest.mark.parametrize("folder", sorted((ROOT / "results" / "search").glob("*")), ids=lambda folder: folder.name)
def test_the_ranking_of_a_search_is_made_from_its_records(folder, capsys):
    """Its runs are there, and their only scores are those of rows held out of the training split."""
    study = read_study(folder)
    made = [run for run in study.runs if (folder / run.folder).is_dir()]
    assert made == study.runs
    for run in made:
        record = read_record(folder / run.folder / "result.json")
        assert (record.run_key, record.status) == (run.key, "finished")
        assert record.protocol.selection_split == record.protocol.report_split == "train_held_out"
    runpy.run_path(str(ROOT / "scripts" / "flat_designs.py"))["rank"](folder)
    assert capsys.readouterr().out == (folder / "ranking.md").read_text()


def test_the_documented_regret_of_choices_is_made_from_their_records(monkeypatch, capsys):
    results = ROOT / "results"
    tasks = {
        "fair_small": ("cola_1000", "mrpc_1000", "sst2_1000"),
        "choose_grid": ("stsb_1000",),
        "choose_grid_mean": ("banking77_few", "clinc150_few"),
    }
    words = ["choose_regret.py"]
    for grid, names in tasks.items():
        words += [str(results / grid), *(f"{name}={results / 'choose' / name}" for name in names)]
    monkeypatch.setattr("sys.argv", words)
    assert runpy.run_path(str(ROOT / "scripts" / "choose_regret.py"))["main"]() == 0
    table, mean = capsys.readouterr().out.split("\n\n")
    documented = (ROOT / "docs" / "choose.md").read_text()
    assert table in documented
    assert f"Mean regret is {mean.split()[2]} points" in documented
