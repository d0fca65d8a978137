"""Costs are averaged over records of one machine only, and every form of a report names it."""

from __future__ import annotations

import csv
import io
import json

import pytest

from petl_bench.records.schema import FrozenFeatures
from petl_bench.records.store import RunFolder
from petl_bench.records.study_file import PlannedRun, StudyFile
from petl_bench.reports.fields import FIELDS
from petl_bench.reports.groups import group_records, named_groups
from petl_bench.reports.machines import Machine, means_on_one_machine
from petl_bench.reports.page import PageInput, page_data
from petl_bench.reports.report import write_report
from reports.made_records import made_record

SECONDS = FIELDS["train_seconds"]
EPYC, XEON = "AMD EPYC, torch 2.13.0, fp32", "Intel Xeon, torch 2.13.0, fp32"


def timed(seed: int = 0, seconds: float = 10.0, method: str = "lora", processor: str = "AMD EPYC", **hardware):
    """A record with a training time and a machine."""
    record = made_record(method, "mrpc", seed)
    record.time.train_seconds = seconds
    record.hardware |= {"processor": processor, **hardware}
    return record


def report(folder, records, form):
    for number, record in enumerate(records):
        RunFolder(folder / str(number)).write(record)
    written = []
    write_report([str(folder)], form, None, written.append)
    return written[0]


def cells_of(text: str) -> list[list[str]]:
    """The cells of every line of Markdown's tables."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


# Alike in all but the processor, and the second of another seed: two lines of times, one of scores.
TWO_MACHINES = [timed(0, 10.0), timed(1, 20.0), timed(2, 90.0, processor="Intel Xeon")]


def test_records_of_two_processors_are_two_lines_of_times_and_one_of_scores(tmp_path):
    text = report(tmp_path, TWO_MACHINES, "md")
    scores, costs = text.split("**mini")[1].splitlines(), text.split("costs by machine**")[1]
    header, _, (method, seeds, *_) = cells_of("\n".join(scores))[:3]
    assert (method, seeds) == ("lora", "3")
    assert not {"train s", "train ex/s", "infer ms", "infer ex/s"} & set(header)
    assert {"estimated MiB", "step GFLOP"} <= set(header), "what is counted is the same on every machine"
    header, _, *lines = cells_of(costs)
    found = [dict(zip(header, line, strict=True)) for line in lines]
    shown = [(line["method"], line["machine"], line["seeds"], line["train s"]) for line in found]
    assert shown == [("lora", EPYC, "2", "15"), ("lora", XEON, "1", "90")]


def test_one_machine_is_named_in_a_note_and_costs_stay_with_the_scores(tmp_path, capsys):
    named = f"times, memory of devices and processes, speed: measured on {EPYC}"
    text = report(tmp_path, TWO_MACHINES[:2], "md")
    assert "costs by machine" not in text
    header, _, line = cells_of(text)[:3]
    assert line[header.index("train s")] == "15"
    assert f"- {named}" in text
    assert named in report(tmp_path, TWO_MACHINES[:2], "latex")
    write_report([str(tmp_path)], "table", None, print)
    assert named in capsys.readouterr().out


def test_csv_has_a_line_of_costs_a_machine_and_scores_once(tmp_path):
    lines = list(csv.DictReader(io.StringIO(report(tmp_path, TWO_MACHINES, "csv"))))
    assert [(line["method"], line["n"], line["machine"], line["measured_runs"]) for line in lines] == [
        ("lora", "3", EPYC, "2"),
        ("lora", "", XEON, "1"),
    ]
    assert [float(line["train_seconds_mean"]) for line in lines] == [15.0, 90.0]
    assert [line["estimated_peak_bytes_mean"] != "" for line in lines] == [True, False]


def test_json_has_the_costs_of_every_machine_and_none_over_all(tmp_path):
    (group,) = json.loads(report(tmp_path, TWO_MACHINES, "json"))["groups"]
    assert [(one["machine"], one["measured_runs"], one["train_seconds_mean"]) for one in group["costs"]] == [
        (EPYC, 2, 15.0),
        (XEON, 1, 90.0),
    ]
    assert group["train_seconds_mean"] is None
    assert group["estimated_peak_bytes_mean"] > 0


def test_the_page_shows_one_machine_in_its_rows_and_all_in_a_table():
    data = page_data(PageInput(named_groups(TWO_MACHINES), TWO_MACHINES))
    assert [row["train_seconds"] for row in data["rows"]] == [15.0]
    assert data["machines"] == [EPYC, XEON]
    header = data["costs"]["words"] + data["costs"]["numbers"]
    lines = [dict(zip(header, line, strict=True)) for line in data["costs"]["lines"]]
    assert [(line["machine"], line["seeds"], line["train s"]) for line in lines] == [
        (EPYC, "2", "15"),
        (XEON, "1", "90"),
    ]
    assert page_data(PageInput(named_groups(TWO_MACHINES[:2]), TWO_MACHINES[:2]))["costs"] is None


@pytest.mark.parametrize("plot_kind", ["pareto"])
def test_a_plot_shows_one_machine_and_names_it(plot_kind, tmp_path):
    for number, record in enumerate(TWO_MACHINES):
        RunFolder(tmp_path / str(number)).write(record)
    file = tmp_path / "plot.svg"
    write_report([str(tmp_path)], "csv", str(file), lambda _: None, plot_kind=plot_kind)
    assert EPYC in file.read_text()
    assert XEON not in file.read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.hardware.update(device="NVIDIA H100"),
        lambda record: record.hardware.update(processor="Intel Xeon"),
        lambda record: record.hardware.update(torch_threads=2),
        lambda record: record.hardware.update(num_processes=2),
        lambda record: record.versions.update(torch="2.14.0"),
        lambda record: setattr(record.protocol, "precision", "bf16"),
        lambda record: setattr(record, "frozen", FrozenFeatures(3, 1, False, "disk", 100, False)),
    ],
    ids=["device", "processor", "threads", "processes", "torch", "precision", "cache"],
)
def test_times_are_averaged_over_what_is_alike_only(change):
    from petl_bench.reports.machines import by_machine

    alike, other = [timed(0, 10.0), timed(1, 20.0)], timed(2, 90.0)
    for record in (*alike, other):
        record.frozen = FrozenFeatures(3, 1, False, "memory", 100, False)
    change(other)
    assert [one.mean(SECONDS) for one in by_machine([*alike, other])] == [15.0, 90.0]


def test_a_run_made_again_replaces_the_older_one():
    old, new = timed(0, 10.0), timed(0, 30.0)
    old.ended_at, new.ended_at = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"
    new.run_key, new.key_version = "a key of another version", 3
    new.scores.best["f1"] = 0.75
    for order in ([old, new], [new, old]):
        (group,) = group_records(order)
        assert (group.score().n, group.score().mean, group.by_seed()) == (1, 0.75, {0: 0.75})
        assert [(len(one.records), one.mean(SECONDS)) for one in group.measured_costs] == [(1, 30.0)]


def test_one_run_on_two_machines_is_one_score_and_two_times():
    here, there = timed(0, 10.0), timed(0, 90.0, processor="Intel Xeon")
    (group,) = group_records([here, there])
    assert group.score().n == 1
    assert [(one.machine.name, one.mean(SECONDS)) for one in group.measured_costs] == [(EPYC, 10.0), (XEON, 90.0)]
    assert group.statistic(SECONDS) is None
    assert group.statistic(SECONDS, Machine.of(there)).mean == 90.0


def test_ratios_compare_two_methods_on_the_same_machine():
    full = [timed(0, 40.0, "full"), timed(1, 400.0, "full", processor="Intel Xeon")]
    lora = [timed(0, 10.0), timed(1, 20.0), timed(2, 90.0, processor="ARM")]
    assert means_on_one_machine(SECONDS, full, lora) == (40.0, 15.0)
    assert means_on_one_machine(SECONDS, full[1:], lora) is None


def test_a_cpu_and_a_gpu_are_two_rows_and_the_way_the_device_was_asked_for_is_none():
    written, resolved, gpu = timed(0), timed(1), timed(2, device="NVIDIA H100")
    resolved.config["train"]["device"] = "cpu"
    assert {group.label: group.seeds for group in group_records([written, resolved, gpu])} == {
        "lora device=cpu": [0, 1],
        "lora device=cuda": [2],
    }


def test_a_machine_is_named_by_what_the_record_says():
    record = timed(torch_threads=1, num_processes=2, device="NVIDIA H100")
    assert Machine.of(record).name == "NVIDIA H100, AMD EPYC, 1 thread, 2 processes, torch 2.13.0, fp32"
    record.hardware, record.versions = {}, {}
    assert Machine.of(record).name == "unknown machine, fp32"


def test_of_several_tasks_each_machine_names_its_own_and_sums_over_them(tmp_path):
    records = [timed(0, 10.0), timed(0, 90.0, processor="Intel Xeon"), made_record("lora", "cola", 0)]
    records[2].time.train_seconds = 5.0
    records[0].frozen = FrozenFeatures(3, 1, False, "disk", 100, False)
    _, costs = report(tmp_path, records, "md").split("costs by machine**")
    header, _, *lines = cells_of(costs)
    found = [dict(zip(header, line, strict=True)) for line in lines[:3]]
    assert [(line["machine"], line["features"], line["tasks"], line["train s"]) for line in found] == [
        (EPYC, "-", "cola", "5"),
        (EPYC, "kept on disk", "mrpc", "10"),
        (XEON, "-", "mrpc", "90"),
    ]


def test_a_study_counts_a_run_once_and_its_times_on_every_machine(tmp_path):
    old, new = timed(0, 10.0), timed(0, 90.0, processor="Intel Xeon")
    old.ended_at, new.ended_at = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"
    new.scores.best["f1"] = 0.75
    StudyFile("s", "", ["LoRA"], ["MRPC"], [0], [PlannedRun("LoRA", "MRPC", 0, old.run_key, "folder", [])]).write(
        tmp_path
    )
    (group,) = json.loads(report(tmp_path, [new, old], "json"))["groups"]
    assert (group["scores"]["f1"]["n"], group["scores"]["f1"]["mean"]) == (1, 0.75)
    assert [(one["machine"], one["train_seconds_mean"]) for one in group["costs"]] == [(EPYC, 10.0), (XEON, 90.0)]
