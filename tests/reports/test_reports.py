"""Reports against numbers computed by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest

from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.records.predictions import Predictions, write_predictions
from petl_bench.records.schema import Data, DeviceMemory, Memory, Params, Record, RunProtocol, Scores, Time
from petl_bench.records.store import RunFolder
from petl_bench.reports.csv_json import to_csv, to_json
from petl_bench.reports.fields import FIELDS
from petl_bench.reports.groups import group_records
from petl_bench.reports.plots.kinds import draw_scores
from petl_bench.reports.render import print_table, to_latex, to_markdown
from petl_bench.reports.report import write_report
from petl_bench.reports.results_table import backbone_results
from petl_bench.reports.significance import Statistic
from petl_bench.reports.tables import baseline_notes
from reports.generated import analyses, record, results_tables
from reports.made_records import made_record


def made(score: float, *overrides: str, seed: int = 0, status: str = "finished", device: bool = False) -> Record:
    cfg = load_config(["task=smoke", *overrides, f"train.seed={seed}"])
    protocol = RunProtocol(
        task=cfg.task.name, metric=cfg.task.metric, higher_is_better=True, selection_split="validation",
        report_split="validation", selection="best", num_train_examples=100, num_eval_examples=50, max_length=32,
        seed=seed, precision="fp32", attention_implementation="sdpa", batching="length_grouped",
    )  # fmt: skip
    trained = {"full": 1000, "lora": 40}.get(cfg.method.name, 10)
    memory = DeviceMemory(2**20, 3 * 2**20, 4 * 2**20, 2**20, 0) if device else None
    return Record(
        run_key=f"{cfg.method.name}{overrides}{seed}",
        config=cfg.to_dict(),
        status=status,
        protocol=protocol,
        params=Params(1100, 1000, trained, trained - 5, 5, trained / 10, 160),
        scores=Scores({cfg.task.metric: score, "f1": score / 2}, {cfg.task.metric: 0.0, "f1": 0.0}, 1.0),
        time=Time(10.0 + seed, 1.0, None, 50.0, 800.0, 0.02),
        memory=Memory(device=memory, process_peak_rss_bytes=(500 + seed) * 2**20),
    )


SEEDS = [made(0.80, seed=0), made(0.82, seed=1), made(0.87, seed=2)]


def test_mean_and_sample_deviation_by_hand():
    (group,) = group_records(SEEDS)
    mean = (0.80 + 0.82 + 0.87) / 3
    sd = math.sqrt(sum((x - mean) ** 2 for x in (0.80, 0.82, 0.87)) / 2)
    assert group.score() == Statistic(pytest.approx(mean), pytest.approx(sd), 3)
    assert group.seeds == [0, 1, 2]
    assert group.statistic(FIELDS["train_seconds"]).mean == 11.0


def test_one_seed_has_no_deviation():
    (group,) = group_records(SEEDS[:1])
    assert group.score() == Statistic(0.80, None, 1)
    assert Statistic.of([None, float("nan")]) is None


def test_the_same_run_found_twice_counts_once():
    (group,) = group_records([*SEEDS, SEEDS[0]])
    assert group.score().n == 3


def test_only_finished_runs_are_compared():
    assert group_records([made(0.1, status="diverged")]) == []


def test_variants_of_a_method_are_told_apart_by_what_differs():
    records = [made(0.8), made(0.9, "method.r=16"), made(0.7, "method=full"), made(0.6, "method=peft"),
               made(0.5, "method=peft", "method.type=LOHA")]  # fmt: skip
    labels = {group.label for group in group_records(records)}
    assert labels == {"lora r=8", "lora r=16", "full", "peft:ia3", "peft:loha"}


def test_records_from_before_a_setting_count_as_without_it():
    old, new = made(0.8, seed=0), made(0.9, seed=1)
    for group, setting in (("train", "gradient_checkpointing"), ("task", "unlabelled"), ("backbone", "dtype")):
        del old.config[group][setting]
    checkpointed = made(0.7, "train.gradient_checkpointing=true")
    groups = {group.label: group.seeds for group in group_records([old, new, checkpointed])}
    assert groups == {"lora": [0, 1], "lora gradient_checkpointing=True": [0]}


def test_variants_in_training_settings_are_told_apart_too():
    labels = {group.label for group in group_records([made(0.8), made(0.9, "train.learning_rate=0.5")])}
    assert labels == {"lora learning_rate=0.001", "lora learning_rate=0.5"}


@pytest.mark.parametrize(
    "override", ["backbone.attention=eager", "backbone.revision=other", "task.num_train_examples=7"]
)
def test_no_two_rows_share_a_name(override):
    (table,) = results_tables([made(0.8), made(0.9, override)])
    assert len({row[0] for row in table.rows}) == len(table.rows) == 2


def test_runs_of_several_processes_are_rows_of_their_own():
    several = made(0.9, seed=1)
    several.hardware["num_processes"] = 2
    assert {group.label for group in group_records([made(0.8), several])} == {"lora processes=1", "lora processes=2"}


def test_a_finished_record_without_scores_is_left_out():
    bare = made(0.8)
    bare.scores = None
    assert group_records([bare]) == []


def test_errors_are_not_percentages():
    record = made(0.3, "task=stsb", "task.metrics=[mean_squared_error]", "task.metric=mean_squared_error")
    record.protocol.higher_is_better = False
    (table,) = results_tables([record])
    assert table.rows[0][table.header.index("stsb mean_squared_error")] == "0.3000"


def test_the_table_has_a_row_a_method_and_a_column_a_task():
    records = [*SEEDS, made(0.9, "method=full"), made(0.7, "task=mrpc")]
    (table,) = results_tables(records)
    assert "smoke acc" in table.header
    assert "mrpc acc" in table.header
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == ["lora", "full"]
    assert rows["lora"]["smoke acc"] == "83.0 ± 3.6"
    assert rows["lora"]["mrpc acc"] == "70.0"
    assert rows["full"]["mrpc acc"] == "-"
    assert rows["lora"]["method params"] == "35"
    assert rows["lora"]["head params"] == "5"
    assert rows["lora"]["seeds"] == "1-3"
    assert rows["full"]["peak process MiB"] == "500"


def test_device_memory_is_shown_where_it_was_measured():
    (table,) = results_tables([made(0.8, device=True)])
    assert table.rows[0][table.header.index("peak device MiB")] == "3"


def test_one_table_a_backbone():
    tables = results_tables([made(0.8), made(0.7, "backbone=tiny_bert")])
    assert [table.title.split(":")[0] for table in tables] == ["minilm", "tiny_bert"]


TFIDF = {"majority": {"accuracy": 0.5, "f1": 0.6}, "tfidf": {"accuracy": 0.7125, "f1": 0.7}}


def with_baselines(record: Record, baselines: dict) -> Record:
    record.baselines = baselines
    return record


def test_baselines_are_rows_below_the_methods():
    # A record from before baselines were scored says nothing of them.
    records = [with_baselines(made(0.8, seed=0), TFIDF), made(0.9, seed=1), made(0.7, "task=mrpc")]
    (table,) = results_tables(records)
    assert [row[0] for row in table.rows] == ["lora", "majority", "tfidf"]
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [row["smoke acc"] for row in rows] == ["85.0 ± 7.1", "50.0", "71.2"]
    assert [row["mrpc acc"] for row in rows] == ["70.0", "-", "-"]
    assert set(rows[2].values()) == {"tfidf", "71.2", "-"}
    assert any(note.startswith("tfidf, a baseline: TF-IDF of words") for note in table.notes)
    (found,) = json.loads(to_json(analyses(backbone_results(group_records(records))), {}))["baselines"].values()
    assert found == {"majority": {"smoke": 0.5}, "tfidf": {"smoke": 0.7125}}
    found = analyses(backbone_results(group_records(records)))
    lines = {line["task"]: line for line in csv.DictReader(io.StringIO(to_csv(found)))}
    assert lines["smoke"]["baseline_majority"] == "0.5" and lines["smoke"]["baseline_tfidf"] == "0.7125"
    assert lines["mrpc"]["baseline_tfidf"] == ""
    (results,) = backbone_results(group_records(records))
    majority, tfidf = baseline_notes(results)
    assert majority.startswith("majority, a baseline (the most frequent class") and majority.endswith(
        ": 50.0 (smoke acc)"
    )
    assert tfidf.endswith(": 71.2 (smoke acc)")


def test_baselines_are_set_apart_by_a_rule_and_by_an_empty_line(capsys):
    (table,) = results_tables([with_baselines(made(0.8), TFIDF)])
    lines = to_latex(table).splitlines()
    assert lines.count(r"\midrule") == 2
    assert lines[lines.index(r"\midrule", lines.index(r"\midrule") + 1) + 1].startswith("majority & ")
    print_table(table)
    shown = [line.split()[:1] for line in capsys.readouterr().out.splitlines()]
    assert shown[shown.index(["majority"]) - 1] == []


def test_runs_on_different_rows_have_no_baseline_in_common():
    others = {"majority": TFIDF["majority"], "tfidf": {"accuracy": 0.6, "f1": 0.5}}
    pair = [with_baselines(made(0.8), TFIDF), with_baselines(made(0.9, "method=full"), others)]
    (table,) = results_tables(pair)
    assert [row[0] for row in table.rows] == ["lora", "full", "majority"]


def test_without_baselines_a_report_is_as_before():
    found = analyses(backbone_results(group_records(SEEDS)))
    assert "baselines" not in json.loads(to_json(found, {}))
    (table,) = results_tables(SEEDS)
    assert [row[0] for row in table.rows] == ["lora"]
    assert not any("baseline" in note for note in table.notes)


def test_csv_and_json_round_nothing_and_hold_every_metric():
    found = analyses(backbone_results(group_records(SEEDS)))
    (row,) = json.loads(to_json(found, {}))["groups"]
    assert list(row["scores"]) == ["accuracy", "f1"]
    assert row["scores"]["accuracy"]["mean"] == pytest.approx((0.80 + 0.82 + 0.87) / 3)
    assert row["scores"]["accuracy"]["by_seed"] == {"0": 0.80, "1": 0.82, "2": 0.87}
    (read,) = csv.DictReader(io.StringIO(to_csv(found)))
    assert float(read["mean"]) == row["scores"]["accuracy"]["mean"]
    assert float(read["f1_mean"]) == row["scores"]["f1"]["mean"] == pytest.approx((0.40 + 0.41 + 0.435) / 3)
    assert read["seeds"] == "0 1 2"
    assert (float(read["median"]), read["n"]) == (0.82, "3")


def test_markdown_is_a_table():
    (table,) = results_tables(SEEDS)
    lines = to_markdown(table).splitlines()
    assert {line.count("|") for line in lines if line.startswith("|")} == {len(table.header) + 1}


def test_latex_escapes_what_it_must():
    (table,) = results_tables([*SEEDS, made(0.7, "method.r=16")])
    text = to_latex(table)
    assert r"\toprule" in text
    assert r"\% of backbone" in text
    assert r"$\pm$" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert "_" not in body.replace(r"\_", "")
    assert all(line.endswith(r"\\") for line in body.strip().splitlines())


def test_the_picture_is_drawn(tmp_path):
    records = [*SEEDS, made(0.9, "method=full"), made(0.7, "task=mrpc")]
    draw_scores(group_records(records), tmp_path / "deep" / "plot.png")
    assert (tmp_path / "deep" / "plot.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(RequestError, match="the ending must be one of"):
        draw_scores(group_records(records), tmp_path / "plot.gif")


def test_runs_that_did_not_finish_are_named(tmp_path, caplog):
    RunFolder(tmp_path / "a").write(SEEDS[0])
    RunFolder(tmp_path / "b").write(made(0.1, "method=full", status="diverged"))
    written = []
    write_report([str(tmp_path)], "md", None, written.append)
    assert "lora" in written[0]
    assert any("left out, diverged: smoke full seed 0" in message for message in caplog.messages)


def test_an_empty_folder_raises(tmp_path):
    with pytest.raises(RequestError, match="No finished run"):
        write_report([str(tmp_path)], "table", None, print)


def test_predictions_are_those_of_the_record_that_counts(tmp_path):
    """Not of an older attempt at the same run, in another folder."""
    for number, (folder, right) in enumerate((("old", 10), ("new", 30))):
        for method, rows in (("full", 40), ("lora", right)):
            one = record(method, "mrpc", 0, rows / 50)
            one.ended_at = f"2026-01-0{number + 1}T00:00:00+00:00"
            RunFolder(tmp_path / folder / method).write(one)
            outputs = np.eye(2, dtype=np.float32)[(np.arange(50) >= rows).astype(int)]
            ids = np.array([f"{row:016x}" for row in range(50)])
            kept = Predictions(ids, np.zeros(50, np.int64), outputs)
            write_predictions(tmp_path / folder / method, {"report": kept})
    written = []
    write_report([str(tmp_path / "new"), str(tmp_path / "old")], "json", None, written.append, reference="full")
    (row,) = json.loads(written[0])["comparisons"]
    assert (row["n"], row["disagreements"], row["difference"]) == (1, 10, pytest.approx(-0.2))


def test_other_rows_under_one_file_name_are_no_other_seed():
    def on(fingerprint, seed, rows=3000):
        record = made_record("lora", "mrpc", seed, rows)
        record.data = Data("rows.csv", None, fingerprint, {"train": rows})
        return record

    first, second = "1" * 64, "2" * 64
    groups = group_records([on(first, 0), on(first, 1), on(second, 0)])
    assert [(group.label, len(group.records), group.replaced) for group in groups] == [
        ("lora data=11111111", 2, ()),
        ("lora data=22222222", 1, ()),
    ]
    # Where a setting says it, the hash is not shown.
    labels = [group.label for group in group_records([on(first, 0), on(second, 0, rows=100)])]
    assert len(labels) == 2
    assert not any("data=" in label for label in labels)
