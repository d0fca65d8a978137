"""Runs with `train.last_layer=first_token`: keys, costs, cached features, checkpoints, compiled layers, predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.estimate.costs import estimate_costs
from petl_bench.estimate.plan import plan
from petl_bench.methods.registry import all_methods
from petl_bench.run.lifecycle import identify
from petl_bench.run.predict import Predictor
from petl_bench.run.run import run
from petl_bench.tasks.rows import Rows

pytestmark = pytest.mark.usefixtures("empty_cache")

FIRST = "train.last_layer=first_token"
TOP = ["layers=top", "layers.k=1"]
SHORT = ["train.max_steps=2", "task.num_train_examples=32"]
TINY = ["task=demo", "backbone=tiny_bert", "backbone.architecture.num_hidden_layers=2", "train.batch_size=16",
        "task.max_length=16"]  # fmt: skip


def assert_same_bits(first, second):
    assert first[1] == second[1]
    assert all(torch.equal(value, second[2][name]) for name, value in first[2].items())


def test_only_another_value_than_the_default_is_part_of_the_key(tiny):
    plain = identify(tiny()).key
    assert identify(tiny("train.last_layer=all")).key == plain
    assert identify(tiny(FIRST)).key != plain
    with pytest.raises(RequestError, match="first_token"):
        tiny("train.last_layer=first")


def test_scores_are_those_of_the_whole_layer(tiny):
    """Without dropout, whose masks differ."""
    still = ["+backbone.architecture.hidden_dropout_prob=0", "+backbone.architecture.attention_probs_dropout_prob=0",
             "method.dropout=0"]  # fmt: skip
    plain, first = (run(tiny(*still, f"train.last_layer={value}")) for value in ("all", "first_token"))
    assert first.params == plain.params
    for one, other in zip(plain.history, first.history, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-5)


@pytest.mark.parametrize("overrides", [["method=head"], [*TOP], ["method=full", *TOP], ["method=houlsby", *TOP]])
def test_cached_or_not_to_the_bit(overrides, tiny, tmp_path, outcome):
    settings = [*overrides, FIRST, "train.epochs=2", "task.max_length=12"]
    found = [
        outcome(tiny(*settings, f"train.cache={cache}", f"runs_dir={tmp_path / cache}"))
        for cache in ("off", "memory", "disk")
    ]
    assert found[0][0].frozen.first_token_only == (overrides == ["method=head"])
    for other in found[1:]:
        assert_same_bits(found[0], other)
    losses = [loss for loss, _ in found[0][1]]
    assert losses[0] != losses[1]


def test_states_of_the_whole_layer_and_of_its_first_token_have_different_keys(tiny):
    cached = ["method=head", "train.cache=disk", "train.epochs=2"]
    assert not run(tiny(*cached)).frozen.reused
    assert not run(tiny(*cached, FIRST)).frozen.reused
    # Below the last layer nothing differs.
    lower = [*TOP, "train.cache=disk", "train.epochs=2"]
    assert not run(tiny(*lower)).frozen.reused
    assert run(tiny(*lower, FIRST)).frozen.reused


def test_it_goes_on_from_a_checkpoint_with_the_same_bits(tiny, tmp_path, monkeypatch, outcome):
    from petl_bench.training.loop import TrainingLoop

    options = [FIRST, "train.epochs=2", "train.checkpoint_seconds=0"]
    whole = outcome(tiny(*options, f"runs_dir={tmp_path / 'whole'}"))
    update = TrainingLoop._update

    def broken(self, indices):
        if self.state.progress.num_steps == 5:
            raise KeyboardInterrupt
        update(self, indices)

    cfg = tiny(*options, f"runs_dir={tmp_path / 'resumed'}")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_update", broken)
        with pytest.raises(BaseException):  # noqa: B017
            run(cfg)
    resumed = outcome(cfg)
    assert resumed[0].resumed_at_updates == [5]
    assert_same_bits(whole, resumed)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=lora"],
        ["method=full", *TOP],
        ["method=houlsby", "train.gradient_checkpointing=true"],
        ["method=bitfit", "train.precision=bf16"],
        ["method=fl_tuning", "backbone.attention=eager"],
        ["method=head"],
    ],
)
def test_a_run_records_what_the_plan_said_which_is_less(tiny, overrides, estimates_here):
    (row,) = plan([*TINY, *overrides, FIRST])
    (whole,) = plan([*TINY, *overrides])
    record = run(tiny(*TINY, *SHORT, *overrides, FIRST, "measure.ledger=true", "measure.inference=true"))
    assert (record.params, record.memory.estimate, record.flops) == (row.params, row.estimate, row.flops)
    assert row.params == whole.params
    assert row.flops.train_step_flops < whole.flops.train_step_flops
    assert row.flops.inference_flops < whole.flops.inference_flops
    # A frozen layer keeps nothing, nor does one that is computed again.
    keeps_less = overrides not in (["method=head"], ["method=houlsby", "train.gradient_checkpointing=true"])
    assert (row.estimate.activations_bytes < whole.estimate.activations_bytes) == keeps_less
    assert row.estimate.peak_bytes <= whole.estimate.peak_bytes
    assert record.inference.latency_ms_median > 0


def test_the_estimate_counts_a_layer_less_of_bert_base():
    def counted(*overrides):
        cfg = load_config(["task=mrpc", "backbone=bert_base", "method=lora", *overrides])
        return estimate_costs(cfg, open_backbone(cfg.backbone, cfg.layers, weights=False), cfg.task.labels)

    whole, first = counted(), counted(FIRST)
    share = first.flops.train_step_flops / whole.flops.train_step_flops
    # Of a layer's products all but those of keys and values: ten of twelve parts, and attention.
    assert share == pytest.approx(1 - 10 / 12 / 12, abs=0.01)
    assert first.estimate.activations_bytes / whole.estimate.activations_bytes == pytest.approx(
        1 - 10 / 12 / 12, abs=0.01
    )


def test_plan_and_run_refuse_the_same_methods(tiny, estimates_here):
    rows = {row.method: row for row in plan([*TINY, "method=all", FIRST])}
    assert rows.keys() == all_methods().keys()
    refused = {name for name, row in rows.items() if row.estimate is None}
    assert refused - {"layer_selection"} == {"coda", "flat", "lst", "prefix"}
    for name in refused - {"layer_selection"}:
        assert "train.last_layer=all" in rows[name].note
        with pytest.raises(RequestError, match=r"train\.last_layer=all"):
            run(tiny(f"method={name}", FIRST))


def test_the_plain_model_predicts_what_was_learnt(tiny):
    cfg = tiny(FIRST, "method=houlsby", "task=demo")
    record = run(cfg)
    predictor = Predictor(identify(cfg).folder)
    predictions = predictor.predict(Rows(tuple([["a few words", "others"]] * len(cfg.task.text_columns)), None))
    assert record.status == "finished"
    assert np.isfinite([list(one.probabilities.values()) for one in predictions]).all()


def test_a_head_on_a_lower_layer_reads_that_layers_first_token(tiny):
    window = ["layers=window", "layers.bottom=2", "layers.top=2", "layers.head=3"]
    record = run(tiny(FIRST, *window, "backbone.architecture.num_hidden_layers=4"))
    assert record.layers.head == 3
    assert record.frozen.layers == 1


def test_a_backbone_of_few_positions_is_checked_on_as_many(tiny):
    few = ["backbone.architecture.max_position_embeddings=5", "task.max_length=5"]
    assert run(tiny(FIRST, *SHORT, *few)).status == "finished"


def test_compiled_layers_learn_the_same(tiny):
    plain = run(tiny(FIRST, *SHORT))
    with torch.compiler.set_stance("force_eager"):
        compiled = run(tiny(FIRST, *SHORT, "train.compile=true"))
    assert compiled.history[0].train_loss == pytest.approx(plain.history[0].train_loss, rel=1e-4)
