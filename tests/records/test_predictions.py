"""Predictions are read as they were written; a broken file is named."""

from __future__ import annotations

import time

import numpy as np
import pytest

from petl_bench.records.predictions import PREDICTIONS_FILE, Predictions, read_predictions, write_predictions


def drawn(num_rows, num_outputs, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.array([f"{rng.integers(2**63):016x}" for _ in range(num_rows)])
    labels = rng.random(num_rows) * 5 if num_outputs == 1 else rng.integers(num_outputs, size=num_rows)
    return Predictions(ids, labels, rng.normal(size=(num_rows, num_outputs)).astype(np.float32))


def assert_equal(found, expected):
    for name in ("row_ids", "labels", "outputs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.labels.dtype == expected.labels.dtype


@pytest.mark.parametrize("num_outputs", [1, 2, 20])
def test_it_is_read_as_it_was_written(num_outputs, tmp_path):
    report, extra = drawn(30, num_outputs), drawn(7, num_outputs, seed=1)
    write_predictions(tmp_path, {"report": report, "mismatched": extra})
    assert_equal(read_predictions(tmp_path), report)
    assert_equal(read_predictions(tmp_path, "mismatched"), extra)
    assert read_predictions(tmp_path, "nothing") is None
    assert [file.name for file in tmp_path.iterdir()] == [PREDICTIONS_FILE]


def test_many_classes_are_kept_in_half_precision(tmp_path):
    report = drawn(3080, 77)
    write_predictions(tmp_path, {"report": report})
    np.testing.assert_allclose(read_predictions(tmp_path).outputs, report.outputs, rtol=2e-3, atol=1e-4)
    assert (tmp_path / PREDICTIONS_FILE).stat().st_size < 600_000


def test_half_precision_changes_no_predicted_class(tmp_path):
    report = drawn(200, 77)
    # Half precision cannot tell the two apart; the second is the larger.
    report.outputs[0, :2] = 20.0, 20.001
    write_predictions(tmp_path, {"report": report})
    np.testing.assert_array_equal(read_predictions(tmp_path).predicted, report.predicted)


def test_logits_too_large_for_half_precision_are_not_rounded(tmp_path):
    report = drawn(3, 30)
    report.outputs[0, :2] = 1e5, 2e5
    write_predictions(tmp_path, {"report": report})
    assert_equal(read_predictions(tmp_path), report)


def test_an_extra_split_may_have_fewer_classes(tmp_path):
    report, extra = drawn(30, 3), drawn(7, 2)
    write_predictions(tmp_path, {"report": report, "other": extra})
    assert_equal(read_predictions(tmp_path), report)
    assert_equal(read_predictions(tmp_path, "other"), extra)


def test_the_same_predictions_are_the_same_file(tmp_path):
    report = drawn(30, 2)
    report.row_ids[1] = report.row_ids[0]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name, {"report": report})
        time.sleep(0.01)
    assert len({(tmp_path / name / PREDICTIONS_FILE).read_bytes() for name in ("one", "two")}) == 1
    assert_equal(read_predictions(tmp_path / "one"), report)


def test_a_run_without_predictions_has_none(tmp_path):
    assert read_predictions(tmp_path) is None


def test_a_broken_file_is_named(tmp_path):
    write_predictions(tmp_path, {"report": drawn(30, 2)})
    whole = (tmp_path / PREDICTIONS_FILE).read_bytes()
    for broken in (b"", b"no parquet", whole[: len(whole) // 2], whole[:40] + b"\0" * 60 + whole[100:]):
        (tmp_path / PREDICTIONS_FILE).write_bytes(broken)
        with pytest.raises(ValueError, match=r"predictions.parquet cannot be read"):
            read_predictions(tmp_path)


def test_predictions_are_classes_or_values():
    assert Predictions(np.array(["a"]), np.array([1]), np.array([[0.1, 0.9, 0.3]])).predicted.tolist() == [1]
    assert Predictions(np.array(["a"]), np.array([1.5]), np.array([[2.5]])).predicted.tolist() == [2.5]
