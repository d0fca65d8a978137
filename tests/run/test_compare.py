"""Two runs, row by row: figures by hand, texts, and what cannot be compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from petl_bench import cli
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.records.predictions import PREDICTIONS_FILE, Predictions, write_predictions
from petl_bench.records.schema import Record, RunProtocol
from petl_bench.records.store import RunFolder
from petl_bench.reports.run_comparison import AccuracyTest, RowDifference
from petl_bench.run.compare import compare_runs
from petl_bench.run.run import run
from petl_bench.tasks.rows import Rows

LABELS = ["no", "yes"]


@pytest.fixture(scope="module")
def config():
    """The config of a run on rows of the user's own."""
    return load_config(
        ["task=custom", "task.train_file=train.csv", "task.validation_file=validation.csv", "backbone=tiny_bert",
         "task.text_columns=[text]", f"task.labels=[{','.join(LABELS)}]", "task.metrics=[accuracy,f1]",
         "task.metric=f1"]
    ).to_dict()  # fmt: skip


@pytest.fixture
def finished(tmp_path, config, monkeypatch):
    """Writes a finished run with its predictions, as a run would leave it; gives its folder."""
    monkeypatch.chdir(tmp_path)

    def write(name, texts, labels, outputs, /, selection=None, status="finished", **task):
        settings = copy.deepcopy(config)
        settings["task"] |= task
        record = Record(name, settings, status=status)
        record.protocol = RunProtocol(
            "custom", settings["task"]["metric"], True, "validation", "validation", "best", 10, len(texts), 128, 0,
            "fp32", "sdpa", "length_grouped",
        )  # fmt: skip
        folder = tmp_path / name
        RunFolder(folder).write(record)
        kept = {"report": Predictions(Rows((texts,), None).ids(), np.array(labels), np.array(outputs, np.float32))}
        if selection is not None:
            ids = np.array([f"{number:016x}" for number in range(len(selection[0]))])
            kept["selection"] = Predictions(ids, np.array(selection[0]), np.array(selection[1], np.float32))
        write_predictions(folder, kept)
        return folder

    return write


def logits(predicted):
    """Logits of 2 for the predicted class, 0 for the other."""
    return 2 * np.eye(2)[list(predicted)]


def write_rows(texts, labels):
    """The files of the user's own task, in the present folder."""
    lines = (f"{text},{LABELS[label]}" for text, label in zip(texts, labels, strict=True))
    Path("validation.csv").write_text("\n".join(["text,label", *lines]))
    Path("train.csv").write_text("text,label\nelsewhere,no\nhere,yes\n")


@pytest.fixture
def hundred(finished):
    """Two runs on 100 rows: on rows 10 and 11 only A is right, on 20 to 31 only B, on row 40 neither."""
    texts, labels = [f"text {number}" for number in range(100)], np.arange(100) % 2
    a, b = labels.copy(), labels.copy()
    for wrong, rows in ((a, [*range(20, 32), 40]), (b, [10, 11, 40])):
        wrong[rows] = 1 - labels[rows]
    write_rows(texts, labels)
    return finished("a", texts, labels, logits(a)), finished("b", texts, labels, logits(b))


def test_figures_by_hand(hundred):
    found = compare_runs(*hundred)
    assert found.rows == 100
    assert found.accuracy_test == AccuracyTest(2, 12, pytest.approx(0.012939, abs=1e-6))
    assert found.agreement_percent == 86.0
    accuracy, f1 = found.metrics
    assert (accuracy.name, accuracy.a, accuracy.b, accuracy.interval) == ("accuracy", 0.87, 0.97, None)
    # "yes" are the odd rows. Of rows 20 to 31, A misses 6 of them and takes 6 others for them, as it does row 40.
    assert (f1.name, f1.a) == ("f1", pytest.approx(2 * 44 / (2 * 44 + 7 + 6)))
    low, high = f1.interval
    assert low < f1.a - f1.b < high < 0
    assert [one.row for one in found.differences] == [10, 11, *range(20, 32)]
    assert found.differences[0] == RowDifference(10, found.differences[0].row_id, "no", "no", "yes", "A", ["text 10"])
    assert {one.right for one in found.differences[2:]} == {"B"}


def test_the_turned_comparison_has_the_other_sign(hundred):
    found, turned = compare_runs(*hundred), compare_runs(*reversed(hundred))
    assert turned.accuracy_test == AccuracyTest(12, 2, found.accuracy_test.p)
    assert turned.metrics[1].interval == pytest.approx([-bound for bound in reversed(found.metrics[1].interval)])
    assert [one.row_id for one in turned.differences] == [one.row_id for one in found.differences]


def test_the_terminal_shows_words_and_as_many_rows_as_are_wanted(hundred, capsys):
    assert cli.main(["compare", *map(str, hundred), "--limit", "3"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "run A alone has 2 rows right and run B alone 12, p = 0.013 by McNemar's exact test: run B is better" in out
    assert "the same label for 86.00 % of the rows" in out
    assert "other seeds may differ in another way" in out
    assert "3 of 14" in out
    assert "text 20" in out
    assert "text 21" not in out


def test_json_has_all_rows(hundred, capsys):
    assert cli.main(["compare", *(str(folder / "result.json") for folder in hundred), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_differences"], len(found["differences"])) == (14, 14)
    assert found["a"]["folder"] == str(hundred[0])
    assert found["accuracy_test"]["p"] == pytest.approx(0.012939, abs=1e-6)
    assert cli.main(["compare", *map(str, hundred), "--json", "--limit", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []


def test_without_the_data_ids_are_shown_and_one_sentence_says_why(hundred, capsys):
    (hundred[0].parent / "validation.csv").unlink()
    assert cli.main(["compare", *map(str, hundred)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "texts of the rows cannot be shown: task.validation_file=validation.csv: there is no such file" in out
    assert compare_runs(*hundred).differences[0].row_id in out


@pytest.mark.parametrize(
    ("group", "key", "value", "words"),
    [
        ("task", "metrics", None, "config.task.metrics is null, not a list"),
        ("task", "metrics", [[1]], r"config.task.metrics\[0\] is \[1\], not text"),
        ("task", "metrics", 1e300, "config.task.metrics is 1e"),
        ("task", "metrics", ..., "config.task.metrics is missing"),
        ("task", "type", 3, "config.task.type is 3, not text"),
        ("task", "text_columns", [], "config.task.text_columns names no column"),
        ("method", "r", "four", "config.method.r is 'four', not a whole number"),
    ],
)
def test_a_record_that_was_changed_is_told_in_a_sentence(hundred, group, key, value, words):
    file = hundred[0] / "result.json"
    content = json.loads(file.read_text())
    content["config"][group][key] = value if value is not ... else None
    if value is ...:
        del content["config"][group][key]
    del content["content_sha256"]
    file.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=f"record's config does not fit .*{words}"):
        compare_runs(*hundred)


@pytest.mark.parametrize("task_type", ["regression", "tagging", "multilabel", "nonsense", None])
def test_a_record_of_another_type_of_task_is_told_in_a_sentence(hundred, task_type):
    for folder in hundred:
        file = folder / "result.json"
        content = json.loads(file.read_text())
        content["config"]["task"]["type"] = task_type
        if task_type is None:
            del content["config"]["task"]["type"]
        del content["content_sha256"]
        file.write_text(json.dumps(content))
    try:
        compare_runs(*hundred)
    except RequestError as error:
        assert "\n" not in str(error)


def test_other_data_than_was_predicted_is_not_shown(hundred):
    write_rows(["changed"], [0])
    found = compare_runs(*hundred)
    assert found.differences[0].texts is None
    assert "other rows by now" in found.notes[-1]


def test_only_shared_rows_are_compared_and_equal_texts_pair_in_their_order(finished):
    # The text "x" stands in both runs twice, with other labels.
    a = finished("a", ["x", "only in a", "x", "z"], [0, 0, 1, 1], logits([0, 0, 0, 1]))
    b = finished("b", ["z", "x", "x"], [1, 0, 1], logits([0, 0, 1]))
    found = compare_runs(a, b)
    assert (found.a.rows, found.b.rows, found.rows) == (4, 3, 3)
    assert [(one.row, one.label, one.a, one.b, one.right) for one in found.differences] == [
        (2, "yes", "no", "yes", "B"),
        (3, "yes", "yes", "no", "A"),
    ]
    # So few rows have no interval.
    assert [figure.interval for figure in found.metrics] == [None, None]


def test_values_are_listed_by_their_distance(finished):
    task = {"type": "regression", "labels": None, "metrics": ["pearson"], "metric": "pearson"}
    texts, labels = [f"text {number}" for number in range(100)], np.linspace(0, 5, 100)
    outputs = labels[:, None] + np.random.default_rng(0).normal(size=(100, 1))
    other = outputs.copy()
    other[[3, 7]] += [[0.5], [-2.0]]
    found = compare_runs(finished("a", texts, labels, outputs, **task), finished("b", texts, labels, other, **task))
    assert [one.row for one in found.differences] == [7, 3]
    assert found.differences[0].a - found.differences[0].b == pytest.approx(2.0, abs=1e-6)
    assert (found.accuracy_test, found.agreement_percent, found.calibration) == (None, None, [])
    assert found.metrics[0].a == pytest.approx(np.corrcoef(outputs[:, 0], labels)[0, 1], abs=1e-6)
    assert found.metrics[0].interval is not None


def test_calibration_is_scaled_where_both_runs_have_selected_on_other_rows(finished):
    texts, labels = [f"text {number}" for number in range(40)], np.arange(40) % 2
    # All rows have a probability of 0.8808 for the predicted class; 3/4 of the rows are right.
    outputs = logits(np.where(np.arange(40) % 4 == 3, 1 - labels, labels))
    a = finished("a", texts, labels, outputs, selection=(labels, outputs))
    b = finished("b", texts, labels, outputs, selection=(labels, outputs))
    found = {figure.name: figure.a for figure in compare_runs(a, b).calibration}
    assert found["calibration error"] == pytest.approx(1 / (1 + np.exp(-2)) - 0.75, abs=1e-6)
    # The best temperature makes the probability 3/4.
    assert compare_runs(a, b).temperatures == pytest.approx((2 / np.log(3),) * 2)
    assert found["calibration error, scaled"] == pytest.approx(0, abs=1e-6)
    assert found["Brier score, scaled"] == pytest.approx(0.75 * 2 * 0.25**2 + 0.25 * 2 * 0.75**2)
    unscaled = compare_runs(a, finished("c", texts, labels, outputs))
    assert unscaled.temperatures is None
    assert len(unscaled.calibration) == 2
    assert "rows that are not reported" in unscaled.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["no", "maybe"]}, r"different tasks: task\.labels is \['no', 'yes'\] in the first"),
        ({"name": "sst2"}, r"task\.name is 'custom' in the first and 'sst2' in the second"),
        ({"status": "diverged"}, "its record says diverged"),
    ],
)
def test_runs_that_answer_other_questions_are_refused(finished, changes, message):
    rows = ["x", "y"], [0, 1], logits([0, 1])
    with pytest.raises(RequestError, match=message):
        compare_runs(finished("a", *rows), finished("b", *rows, **changes))


def test_other_rows_and_other_labels_are_refused(finished):
    a = finished("a", ["x", "y"], [0, 1], logits([0, 1]))
    with pytest.raises(RequestError, match="no row in common"):
        compare_runs(a, finished("b", ["v", "w"], [0, 1], logits([0, 1])))
    with pytest.raises(RequestError, match="other labels for the same texts, first in row 1"):
        compare_runs(a, finished("c", ["x", "y"], [0, 0], logits([0, 1])))


def test_a_run_without_predictions_names_the_way_to_have_them(hundred, capsys):
    (hundred[1] / PREDICTIONS_FILE).unlink()
    assert cli.main(["compare", *map(str, hundred)]) == 2
    assert "force=true and measure.predictions=true" in capsys.readouterr().err
    (hundred[1] / PREDICTIONS_FILE).write_bytes(b"broken")
    assert cli.main(["compare", *map(str, hundred)]) == 2
    assert "predictions.parquet cannot be read" in capsys.readouterr().err


def test_folders_without_a_run_and_bad_limits_are_refused(hundred, capsys):
    for other in ("nowhere", str(hundred[0].parent), "validation.csv"):
        assert cli.main(["compare", str(hundred[0]), other]) == 2
        assert f"{other} holds no finished run" in capsys.readouterr().err
    assert cli.main(["compare", *map(str, hundred), "--limit", "-1"]) == 2
    assert "--limit=-1" in capsys.readouterr().err


def test_two_real_runs_have_the_scores_of_their_records(tiny, tmp_path):
    records = [run(tiny(f"method={method}", "train.learning_rate=0.03")) for method in ("bitfit", "head")]
    folders = [next((tmp_path / "runs").glob(f"smoke-{method}-*")) for method in ("bitfit", "head")]
    found = compare_runs(*folders)
    assert [{one.name: getattr(one, run) for one in found.metrics} for run in "ab"] == [
        record.selected_scores for record in records
    ]
    assert found.rows == records[0].protocol.num_eval_examples
    assert all(one.texts for one in found.differences)
