"""The predictions that a run keeps are those that its record scores."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from petl_bench.errors import Interrupted
from petl_bench.records.predictions import PREDICTIONS_FILE, read_predictions
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.tasks.load import load_task
from petl_bench.tasks.metrics import compute_metrics
from petl_bench.tasks.rows import Rows
from petl_bench.training.loop import TrainingLoop


@pytest.fixture
def overtrained(tiny, tmp_path):
    """A short regression whose best evaluation is not its last."""
    rng = np.random.default_rng(0)
    # What is learned, that labels are 2 on average, is wrong on the validation rows.
    for name, rows, mean in (("train", 96, 2), ("validation", 40, 0)):
        lines = [f"row {number} of {name},{rng.normal(mean):.3f}" for number in range(rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))

    def compose(*overrides):
        return tiny(
            "task=custom", "task.type=regression", "task.labels=null", "task.metrics=[mean_squared_error]",
            "task.metric=mean_squared_error", "task.text_columns=[text]", "task.label_column=label",
            "task.num_train_examples=null", "task.num_held_out_examples=30", f"task.train_file={tmp_path}/train.csv",
            f"task.validation_file={tmp_path}/validation.csv", "method=full", "train.epochs=4",
            "train.learning_rate=0.3", "train.evaluate_every=3", "backbone.architecture.num_hidden_layers=4",
            *overrides,
        )  # fmt: skip

    return compose


def scored(cfg, split="report"):
    """A run's record, and the scores that its predictions give."""
    record = run(cfg)
    kept = read_predictions(identify(cfg).folder, split)
    return record, kept, compute_metrics(cfg.task.metrics, kept.predicted, kept.labels)


@pytest.mark.parametrize("selection", ["best", "last"])
@pytest.mark.parametrize("protocol", ["standard", "held_out"])
def test_they_give_the_scores_of_the_selected_weights(overtrained, selection, protocol):
    cfg = overtrained(f"train.selection={selection}", f"task.protocol={protocol}")
    record, kept, scores = scored(cfg)
    assert record.scores.best != record.scores.last
    assert scores == record.selected_scores
    task = load_task(cfg.task, None)
    assert kept.row_ids.tolist() == [hashlib.sha256(text.encode()).hexdigest()[:16] for text in task.report.texts[0]]
    np.testing.assert_array_equal(kept.labels, task.report.labels)
    # Temperatures are fitted on the rows that chose the checkpoint, if these are others than those reported on.
    selected = read_predictions(identify(cfg).folder, "selection")
    assert (selected is None) == (protocol == "standard")
    if selected is not None:
        errors = [entry.scores["mean_squared_error"] for entry in record.history]
        wanted = min(errors) if selection == "best" else errors[-1]
        assert ((selected.predicted - selected.labels) ** 2).mean() == pytest.approx(wanted)


def test_a_resumed_run_keeps_the_same_predictions(overtrained, tmp_path, monkeypatch):
    cfg = overtrained("train.checkpoint_seconds=0", f"runs_dir={tmp_path}/resumed")
    undisturbed = overtrained()
    run(undisturbed)
    original, updates = TrainingLoop._update, []

    def interrupted(self, *arguments, **named):
        updates.append(1)
        if len(updates) == 20:
            raise Interrupted("now")
        return original(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_update", interrupted)
        with pytest.raises(Interrupted):
            run(cfg)
    record = run(cfg)
    assert record.resumed_at_updates
    files = [identify(one).folder / PREDICTIONS_FILE for one in (undisturbed, cfg)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_they_can_be_left_out_and_a_repeated_run_then_removes_them(tiny):
    cfg = tiny("method=head")
    run(cfg)
    file = identify(cfg).folder / PREDICTIONS_FILE
    assert file.is_file()
    repeated = tiny("method=head", "measure.predictions=false", "force=true")
    assert identify(repeated).key == identify(cfg).key
    run(repeated)
    assert not file.exists()


@pytest.mark.parametrize("keep", ["true", "false"])
def test_a_repeated_run_that_fails_leaves_those_of_the_finished_one(tiny, monkeypatch, keep):
    cfg = tiny("method=head")
    run(cfg)
    file = identify(cfg).folder / PREDICTIONS_FILE
    before = file.stat()

    def interrupted(*_arguments):
        raise Interrupted(15)

    monkeypatch.setattr("petl_bench.run.run.save_trained", interrupted)
    with pytest.raises(Interrupted):
        run(tiny("method=head", "force=true", f"measure.predictions={keep}"))
    # Not even equal bytes in its place.
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_rows_are_named_by_their_texts_alone():
    pair = Rows((["a", "a", "ab"], ["b", "b", ""]), np.array([0, 1, 0]))
    first, again, other = pair.ids()
    assert first == again == hashlib.sha256(b"a\0b").hexdigest()[:16]
    assert other != first
    json.dumps(first.item())
