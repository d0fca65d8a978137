"""Reports compare like with like: what differs between methods is named beside their scores."""

from __future__ import annotations

import csv
import io
import json

import pytest

from petl_bench.records.schema import HistoryEntry
from petl_bench.records.study_file import PlannedRun
from petl_bench.reports.csv_json import to_csv, to_json
from petl_bench.reports.groups import group_records
from petl_bench.reports.plots import kinds
from petl_bench.reports.protocol import (
    batch_text,
    improving_notes,
    protocol_numbers,
    rate_notes,
    setting_notes,
    settings_of,
    still_improving,
)
from petl_bench.reports.results_table import backbone_results, study_results
from reports import toy_study
from reports.generated import analyses, record, results_tables


def trained(method, task="mrpc", *, seed=0, rows=None, **settings):
    one = record(method, task, seed, 0.8)
    one.config["train"] |= settings
    if rows is not None:
        one.protocol.num_train_examples = rows
    return one


def notes(*made):
    (results,) = backbone_results(group_records(made))
    return setting_notes(results)


def test_settings_that_all_methods_share_are_not_named():
    assert notes(trained("lora"), trained("full"), trained("full", seed=1)) == []


def test_settings_that_differ_between_methods_are_named_with_their_values():
    made = [trained("lora", epochs=10, learning_rate=1e-3), trained("full", epochs=3, learning_rate=2e-5)]
    made.append(trained("head", epochs=3, learning_rate=1e-3))
    # All methods train as many parameters, so that the table has them in the order of their names.
    assert notes(*made) == [
        "not the same for all methods: epochs 3 (full, head); 10 (lora)",
        "not the same for all methods: learning rate 2e-05 (full); 0.001 (head, lora)",
    ]


def test_rows_and_batches_that_differ_are_named():
    assert notes(trained("lora", rows=3000, batch_size=16), trained("full", rows=100)) == [
        "not the same for all methods: training rows 100 (full); 3,000 (lora)",
        "not the same for all methods: batch size 32 (full); 16 (lora)",
    ]


def test_a_setting_that_differs_on_one_task_names_the_task():
    made = [trained(method, task) for method in ("lora", "full") for task in ("mrpc", "rte")]
    made[0].config["train"]["epochs"] = 20
    epochs = made[1].config["train"]["epochs"]
    assert notes(*made) == [f"not the same for all methods on mrpc: epochs {epochs} (full); 20 (lora)"]


def test_a_task_with_one_method_has_nothing_that_differs():
    assert notes(trained("lora", "mrpc", epochs=2), trained("full", "rte", epochs=9)) == []


def test_paths_are_not_named():
    made = [trained("lora"), trained("full")]
    made[0].config["task"]["train_file"] = "/home/somebody/rows.csv"
    assert notes(*made) == []


def test_the_notes_stand_directly_under_the_table():
    (table,) = results_tables([trained("lora", epochs=10), trained("full", epochs=3)])
    assert table.notes[0] == "not the same for all methods: epochs 3 (full); 10 (lora)"


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"learning_rate": 0.5}, True),
        ({"gradient_checkpointing": True}, True),
        ({"epochs": 77}, False),
        ({"batch_size": 5}, False),
        ({"selection": "last"}, False),
    ],
)
def test_a_protocol_is_rows_and_length_of_training_and_not_the_rates(settings, same):
    groups = group_records([trained("lora"), trained("full", **settings)])
    assert (len(set(protocol_numbers(groups))) == 1) is same


def test_fronts_join_the_runs_of_one_protocol(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(kinds, "_draw_front", lambda _axes, points, _cost, **_: drawn.append(len(points)))
    made = [trained("lora"), trained("full"), trained("head", epochs=77)]
    kinds.draw_scores(group_records(made), tmp_path / "plot.png")
    panels = len(drawn) // 2
    assert panels > 1
    assert sorted(drawn) == [1] * panels + [2] * panels


def test_the_batch_stands_beside_the_memory():
    made = [trained("lora", "mrpc", batch_size=16), trained("lora", "rte", batch_size=64), trained("full", "mrpc")]
    (table,) = results_tables(made)
    place = table.header.index("estimated MiB")
    assert table.header[place + 1] == "batch"
    assert {row[0]: row[place : place + 2] for row in table.rows} == {"lora": ["5", "16/64"], "full": ["5", "32"]}
    assert batch_text(group_records(made)) == "batch of 16 or 32 or 64 rows"


def curve(*scores, error=False):
    one = record("lora", "mrpc", 0, 0.8, error_metric=error)
    metric = one.protocol.metric
    one.history = [HistoryEntry(float(n), n, 0.5, {metric: score}, 1.0) for n, score in enumerate(scores)]
    return one


@pytest.mark.parametrize(
    ("scores", "error", "improving"),
    [
        ((0.5, 0.6, 0.7), False, True),
        ((0.5, 0.7, 0.7), False, False),
        ((0.7, 0.6, 0.65), False, False),
        ((0.7,), False, False),
        ((), False, False),
        ((0.7, 0.6, 0.5), True, True),
        ((0.5, 0.6, 0.7), True, False),
    ],
)
def test_still_improving_is_read_from_the_history(scores, error, improving):
    (group,) = group_records([curve(*scores, error=error)])
    assert still_improving(group) is improving


TRIED = "learning rate that was tried was chosen"


@pytest.mark.parametrize(
    ("rates", "chosen", "note"),
    [
        ((1e-4, 1e-3, 1e-2), (1e-2, 1e-2), f"the highest {TRIED}, a higher one may give more: a (all tasks)"),
        ((1e-4, 1e-3, 1e-2), (1e-4, 1e-3), f"the lowest {TRIED}, a lower one may give more: a (t)"),
        ((1e-4, 1e-3, 1e-2), (1e-3, 1e-3), None),
        ((1e-4, 1e-2), (1e-2, 1e-4), None),
    ],
)
def test_a_rate_at_the_end_of_its_list_is_told(rates, chosen, note):
    runs = [
        PlannedRun("a", task, 0, f"{task} {rate}", "folder", [], learning_rate=rate, is_trial=True, chosen=rate == best)
        for task, best in zip(("t", "u"), chosen, strict=True)
        for rate in rates
    ]  # fmt: skip
    tried = toy_study.study(methods=("a",), seeds=(0,))
    tried.runs[:] = runs
    assert rate_notes(study_results(tried, [])) == ([] if note is None else [note])


def test_the_mean_over_seeds_decides_and_the_table_says_so():
    one, other = curve(0.5, 0.6, 0.7), curve(0.5, 0.7, 0.68)
    other.run_key, other.protocol.seed, other.config["train"]["seed"] = "other", 1, 1
    # Means: 0.5, 0.65, 0.69.
    (results,) = backbone_results(group_records([one, other]))
    assert improving_notes(results) == [
        "still improving at the last evaluation, longer training may give more: mrpc (lora)"
    ]


def test_json_has_the_settings_and_csv_the_most_asked():
    found = analyses(backbone_results(group_records([trained("lora", batch_size=16, learning_rate=0.5)])))
    (row,) = json.loads(to_json(found, {}))["groups"]
    assert (row["settings"]["batch size"], row["settings"]["training rows"]) == ("16", "100")
    assert row["still_improving"] is False
    (line,) = csv.DictReader(io.StringIO(to_csv(found)))
    assert (line["batch_size"], line["learning_rate"]) == ("16", "0.5")


def test_records_without_settings_still_report():
    bare = record("lora", "mrpc", 0, 0.8)
    bare.config = {}
    assert settings_of(bare)["training rows"] == "100"
    assert bare.batch_size is None
