"""AdaLoRA reallocates its ranks when PEFT would, and the adapter that is kept is the model that was scored."""

from __future__ import annotations

import json

import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator, SVDLinear

from petl_bench.methods.peft import RankAllocation
from petl_bench.run.evaluate import Evaluator
from petl_bench.run.lifecycle import identify
from petl_bench.run.predict import Predictor
from petl_bench.run.run import run

# Two layers with an adapter on query and value each: 16 ranks at first, 8 in the end.
ADALORA = [
    "method=peft", "method.type=ADALORA", "+method.args.init_r=4", "+method.args.target_r=2",
    "+method.args.lora_alpha=64", "backbone.architecture.num_hidden_layers=2", "task.max_length=16",
    "train.learning_rate=1e-1", "train.schedule=constant", "train.eval_batch_size=200",
]  # fmt: skip


def schedule(tinit, tfinal, every):
    return [f"+method.args.tinit={tinit}", f"+method.args.tfinal={tfinal}", f"+method.args.deltaT={every}"]


@pytest.mark.parametrize(
    ("settings", "budgets"),
    [
        # 8 + 8 x (1 - (update - tinit) / (updates - tfinal - tinit))^3, rounded down, at multiples of deltaT after
        # tinit; what remains after update 6 - tfinal stays.
        (schedule(1, 2, 2), {2: 10, 4: 8}),
        (schedule(0, 0, 1), {1: 12, 2: 10, 3: 9, 4: 8, 5: 8, 6: 8}),
        (schedule(0, 1, 3), {3: 8, 5: 8}),
        (schedule(2, 1, 4), {4: 8, 5: 8}),
    ],
)
def test_updates_are_counted_from_1_as_in_peft_s_own_comparison(settings, budgets, tiny, monkeypatch):
    on_update, mask, update, found = RankAllocation.on_update, RankAllocator.mask_to_budget, [0], {}

    def watched(self, step):
        update[0] += 1
        on_update(self, step)

    def masked(self, model, budget):
        found[update[0]] = budget
        return mask(self, model, budget)

    monkeypatch.setattr(RankAllocation, "on_update", watched)
    monkeypatch.setattr(RankAllocator, "mask_to_budget", masked)
    cfg = tiny(*ADALORA, *settings, "train.max_steps=6", "train.selection=last")
    run(cfg)
    assert found == budgets
    # All ranks of the last reallocation are kept, and no other: nothing comes after it but updates that mask again.
    assert sum(map(sum, kept_ranks(cfg).values())) == 8


def kept_ranks(cfg):
    return json.loads((identify(cfg).folder / "adapter" / "adapter_config.json").read_text())["rank_pattern"]


def deltas(model):
    """What each adapter adds to its weight matrix."""
    return [layer.get_delta_weight("default").detach() for layer in model.modules() if isinstance(layer, SVDLinear)]


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        # Right after a reallocation, between two of them, before the first, and after the last.
        (schedule(1, 0, 4), 4),
        (schedule(1, 0, 4), 6),
        (schedule(1, 2, 3), 4),
        (schedule(2, 1, 2), 5),
        (schedule(0, 0, 100), 3),
        (schedule(1, 3, 2), 5),
        (schedule(1, 3, 2), 7),
    ],
)
def test_the_kept_adapter_is_the_scored_model(settings, best, tiny, monkeypatch):
    scored = []

    def scores(self):
        scored.append(deltas(self.model))
        return {"accuracy": float(len(scored) == best)}

    monkeypatch.setattr(Evaluator, "selection_scores", scores)
    cfg = tiny(*ADALORA, *settings, "train.max_steps=7", "train.evaluate_every=1", "measure.predictions=false")
    run(cfg)
    kept = deltas(Predictor(identify(cfg).folder)._model)
    assert max(delta.abs().max() for delta in kept) > 1e-3
    for found, wanted in zip(kept, scored[best - 1], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
