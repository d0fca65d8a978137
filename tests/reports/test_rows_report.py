"""`report --rows`: figures by hand from the predictions of a few runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from generated import record

from petl_bench import cli
from petl_bench.records.predictions import Predictions, write_predictions
from petl_bench.records.store import RunFolder

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
IDS = np.array([f"{number:016x}" for number in range(len(LABELS))])


def logits(predicted, size=2.0):
    return (size * np.eye(2)[list(predicted)]).astype(np.float32)


def write_run(folder, method, seed, predicted, selection=None, labels=("negative", "positive")):
    made = record(method, "demo", seed, 0.5)
    made.config["task"]["labels"] = list(labels)
    path = folder / f"{method}-{seed}"
    RunFolder(path).write(made)
    kept = {"report": Predictions(IDS, LABELS, logits(predicted))}
    if selection is not None:
        kept["selection"] = Predictions(IDS, LABELS, logits(selection))
    write_predictions(path, kept)


@pytest.fixture
def folder(tmp_path):
    """Two seeds of `full`, one of them without an error, and one of `lora` that was selected on other rows."""
    runs = tmp_path / "runs"
    write_run(runs, "full", 0, LABELS)
    write_run(runs, "full", 1, [0, 0, 0, 1, 1, 1, 0, 0])
    write_run(runs, "lora", 0, [0] * 8, selection=[0, 0, 0, 1, 1, 1, 1, 0])
    return runs


def test_figures_by_hand(folder, capsys):
    assert cli.main(["report", str(folder), "--rows", "--format", "json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)
    assert (task["task"], task["labels"]) == ("demo", ["negative", "positive"])
    full, lora = task["methods"]
    assert (full["method"], full["runs"]) == ("full", 2)
    # Of both runs together: 7 of 8 negative rows are found, 6 of 8 positive ones.
    assert full["confusion_matrix"] == [[7, 1], [2, 6]]
    negative = full["classes"][0]
    assert (negative["precision"], negative["recall"], negative["support"]) == (pytest.approx(7 / 9), 7 / 8, 8)
    # Every row has a probability of 0.8808 for the predicted class; all rows are right in one run, 5 of 8 in the other.
    sure = 1 / (1 + np.exp(-2))
    errors = [1 - sure, sure - 5 / 8]
    assert full["calibration"]["ECE"]["mean"] == pytest.approx(np.mean(errors), abs=1e-6)
    assert full["calibration"]["ECE"]["sd"] == pytest.approx(np.std(errors, ddof=1), abs=1e-6)
    assert full["calibration"]["ECE scaled"] is None
    assert "rows that are not reported" in full["no_scaling_because"]
    # 6 of 8 rows of the selection split are right, 4 of 8 of those reported; the temperature gives all rows 3/4.
    assert lora["calibration"]["temperature"]["mean"] == pytest.approx(2 / np.log(3))
    assert lora["calibration"]["ECE scaled"]["mean"] == pytest.approx(3 / 4 - 1 / 2)
    assert (lora["classes"][1]["precision"], lora["classes"][1]["recall"]) == (None, 0.0)
    assert lora["no_scaling_because"] is None


@pytest.mark.parametrize("form", ["table", "md", "latex"])
def test_tables_in_every_form(folder, capsys, form):
    assert cli.main(["report", str(folder), "--rows", "--format", form]) == 0
    out = capsys.readouterr().out
    for title in ("calibration", "classes", "confusion matrix"):
        assert f"minilm, demo: {title}" in " ".join(out.split())
    assert "no temperature scaling of full" in " ".join(out.split())
    assert "77.8" in out


def test_a_matrix_of_many_classes_is_left_to_json(tmp_path, capsys):
    names = [f"class{number}" for number in range(30)]
    write_run(tmp_path, "full", 0, LABELS, labels=names)
    assert cli.main(["report", str(tmp_path), "--rows"]) == 0
    out = capsys.readouterr().out
    assert "30 classes are too many" in out
    assert "demo: confusion matrix" not in out
    assert cli.main(["report", str(tmp_path), "--rows", "--format", "json"]) == 0
    assert np.shape(json.loads(capsys.readouterr().out)[0]["methods"][0]["confusion_matrix"]) == (30, 30)


def test_runs_with_other_labels_are_left_out_and_named(folder, capsys):
    write_run(folder, "bitfit", 0, LABELS, labels=("no", "yes"))
    assert cli.main(["report", str(folder), "--rows", "--format", "json"]) == 0
    captured = capsys.readouterr()
    (task,) = json.loads(captured.out)
    # Methods with equally many parameters are in the order of their names.
    assert ([one["method"] for one in task["methods"]], task["labels"]) == (["bitfit"], ["no", "yes"])
    assert "demo: left out because of other labels than bitfit: full, lora" in captured.err


def test_what_has_no_rows_is_refused(folder, tmp_path, capsys):
    assert cli.main(["report", str(folder), "--rows", "--format", "csv"]) == 2
    assert "use --format json" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--rows", "--html", "page.html"]) == 2
    assert "leave out --plot, --html, --compare, --columns and --method-comparison" in capsys.readouterr().err
    for file in folder.glob("*/predictions.parquet"):
        file.unlink()
    assert cli.main(["report", str(folder), "--rows"]) == 2
    assert "has kept predictions" in capsys.readouterr().err
