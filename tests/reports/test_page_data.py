"""What is in the page of a report: its parts, and the data that its scripts draw."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest

from petl_bench.errors import RequestError
from petl_bench.records.store import RunFolder
from petl_bench.records.study_file import PlannedRun, StudyFile
from petl_bench.reports.groups import named_groups
from petl_bench.reports.page import SCRIPTS, STYLES, PageInput, page_data, render_page, write_page
from petl_bench.reports.report import write_report
from reports.generated import record as one_record
from reports.made_records import made_record, made_study

ROOT = Path(__file__).parents[2]


def embedded(page: str) -> dict:
    """The data of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def rendered(records: list, **more) -> str:
    return render_page(page_data(PageInput(named_groups(records), records, **more)))


def test_the_parts_of_the_page_are_shipped():
    beside = {item.name for item in files("petl_bench.reports.page").iterdir() if item.is_file()}
    shipped = {name for name in beside if not name.endswith(".py")}
    assert shipped == {"page.html", *STYLES, *SCRIPTS}
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = built["package-data"]["petl_bench.reports.page"]
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in shipped)


def test_the_page_names_no_other_place():
    page = rendered(made_study(seeds=1))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert not re.search(r"\b(src|href)=\"(?!data:,|#)", page)
    assert "default-src 'none'" in page


def test_rows_hold_the_statistics_by_hand():
    records = [made_record("lora", "cola", seed) for seed in range(3)]
    for record, score in zip(records, (0.50, 0.52, 0.57), strict=True):
        record.scores.best["matthews_correlation"] = score
    (row,) = embedded(rendered(records))["rows"]
    assert (row["score"], row["sd"], row["median"]) == pytest.approx((53.0, 3.605551, 52.0))
    # 4.3027 standard errors of 3.6056 / sqrt(3) on either side.
    assert (row["low"], row["high"]) == pytest.approx((53 - 8.9568, 53 + 8.9568), abs=1e-3)
    assert row["estimated_peak_bytes"] == pytest.approx(records[0].memory.estimate.peak_bytes / 2**20)
    assert row["device_peak_bytes"] is None
    step, epoch, mean, _, n = row["history"][-1]
    assert (step, epoch, n) == (276, 3.0, 3)
    assert mean == pytest.approx(100 * sum(r.history[-1].scores["matthews_correlation"] for r in records) / 3)


def test_numbers_of_rows_share_the_name_of_their_method():
    data = embedded(rendered(made_study(seeds=1)))
    curves = {curve["method"]: [data["rows"][i]["rows"] for i in curve["rows"]] for curve in data["rows_curves"]}
    assert curves["bitfit"] == [100, 300, 1000, 3000]
    assert sorted(curves) == ["bitfit", "full", "lora layers.name=all"]


def test_a_study_names_its_runs_and_leaves_out_what_it_did_not_take(tmp_path):
    taken, rejected, foreign = (
        made_record("lora", "cola", seed, variant=rate) for seed, rate in ((0, 1e-3), (0, 1), (7, 1e-3))
    )
    for number, record in enumerate((taken, rejected, foreign)):
        RunFolder(tmp_path / str(number)).write(record)
    runs = [
        PlannedRun("LoRA of the paper", "CoLA", 0, taken.run_key, "0", []),
        PlannedRun("LoRA of the paper", "CoLA", 0, rejected.run_key, "1", [], chosen=False),
    ]
    study = StudyFile("a study", "What it asks.", ["LoRA of the paper"], ["CoLA"], [0], runs, deviations=["Smaller."])
    study.write(tmp_path)
    write_report([str(tmp_path)], "csv", None, lambda _: None, page=str(tmp_path / "page.html"))
    data = embedded((tmp_path / "page.html").read_text())
    assert [(row["method"], row["task"], row["n"]) for row in data["rows"]] == [("LoRA of the paper", "CoLA", 1)]
    assert (data["title"], data["descriptions"], data["deviations"]) == ("a study", ["What it asks."], ["Smaller."])
    assert data["origin"]["others"] == 2


def test_rows_that_a_study_names_alike_are_told_apart():
    records = [made_record("lora", "cola", 0, variant=rate) for rate in (1e-3, 1e-2)]
    runs = [PlannedRun("LoRA", "cola", 0, record.run_key, "", [], chosen=None) for record in records]
    named = named_groups(records, [StudyFile("s", "", ["LoRA"], ["cola"], [0], runs)])
    assert {item.method for item in named} == {"LoRA (lora learning_rate=0.001)", "LoRA (lora learning_rate=0.01)"}


def test_a_page_needs_an_ending_that_browsers_open(tmp_path):
    with pytest.raises(RequestError, match=r"--html .*page.txt: the ending must be one of .html, .htm"):
        write_page(page_data(PageInput([], [])), tmp_path / "page.txt")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("petl_bench.process.os.fsync", full)
    with pytest.raises(OSError, match=r"page\.html"):
        write_page(page_data(PageInput([], [])), file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_long_history_is_thinned_to_what_a_plot_can_show():
    record = made_record("lora", "cola", 0)
    first = record.history[0]
    record.history = [replace(first, step=step) for step in range(1, 1001)]
    (row,) = page_data(PageInput(named_groups([record]), [record]))["rows"]
    steps = [step for step, *_ in row["history"]]
    assert len(steps) <= 121
    assert (steps[0], steps[-1]) == (1, 1000)


def test_fronts_join_rows_of_one_protocol_and_memory_names_its_batch():
    records = [made_record(method, "cola", 0) for method in ("lora", "full", "head")]
    records[2].config["train"]["epochs"] = 77
    data = page_data(PageInput(named_groups(records), records))
    protocols = {row["method"]: row["protocol"] for row in data["rows"]}
    assert protocols["lora"] == protocols["full"] != protocols["head"]
    first = data["axes"][0]
    assert (first["key"], first["name"]) == ("estimated_peak_bytes", "estimated memory, MiB, batch of 32 rows")
    assert first["short"] == "estimated MiB (batch of 32 rows)"


def test_pairs_and_complete_tasks_go_by_the_runs():
    records = [made_record(method, task, 0) for method in ("lora", "full") for task in ("cola", "mrpc")]
    keys = [record.run_key for record in records]
    # The last is of a run that is not on the page.
    pairs = [(keys[0], keys[2], -1), (keys[0], "another", 1)]
    data = page_data(PageInput(named_groups(records), records, pairs=pairs, incomplete={keys[1], keys[3]}))
    ids = {(row["method"], row["task"]): row["id"] for row in data["rows"]}
    assert data["pairs"] == [[ids["lora", "cola"], ids["full", "cola"], -1]]
    assert {(row["task"], row["complete"]) for row in data["rows"]} == {("cola", True), ("mrpc", False)}


def test_a_report_tells_the_page_what_its_tests_show(tmp_path):
    scores = {"lora": (0.80, 0.81, 0.82), "full": (0.90, 0.92, 0.91), "head": (0.81, 0.80, 0.82)}
    made = [
        one_record(method, "mrpc", seed, score) for method, mine in scores.items() for seed, score in enumerate(mine)
    ]
    made.append(one_record("lora", "rte", 0, 0.5))
    for one in made:
        RunFolder(tmp_path / one.run_key).write(one)
    page = tmp_path / "page.html"
    # The box compares every pair, whatever the tables compare.
    write_report([str(tmp_path)], "csv", None, lambda _: None, page=str(page), reference="full")
    data = embedded(page.read_text())
    names = {row["id"]: row["method"] for row in data["rows"]}
    signs = {frozenset((names[a], names[b])): (names[a], sign) for a, b, sign in data["pairs"]}
    # Full against LoRA: 10, 11 and 9 points, t = 17.3, p = 0.003; against the head 9, 12, 9, t = 10, p = 0.01;
    # LoRA against the head: -1, 1, 0.
    assert len(data["pairs"]) == 3
    for other in ("lora", "head"):
        first, sign = signs[frozenset(("full", other))]
        assert sign == (1 if first == "full" else -1)
    assert signs[frozenset(("lora", "head"))][1] == 0
    assert {row["task"]: row["complete"] for row in data["rows"]} == {"mrpc": True, "rte": False}


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid(script):
    file = files("petl_bench.reports.page") / script
    done = subprocess.run(["node", "--check", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
