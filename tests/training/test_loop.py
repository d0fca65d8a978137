"""The loop: updates, schedules, early stopping, divergence, what is counted."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.callback import CallbackTrigger, callback_handler

from behaviour.matrix import ARCHITECTURES, MATRIX, METHODS, adapted, two_layers
from petl_bench.config import load_config
from petl_bench.errors import DivergedError, RequestError
from petl_bench.frozen.batch_source import BatchSources
from petl_bench.records.run_key import KEY_VERSION
from petl_bench.run.describe import describe_time
from petl_bench.run.evaluate import Evaluator
from petl_bench.run.run import run
from petl_bench.training import TrainConfig
from petl_bench.training.checkpoint import Progress, WarmUp
from petl_bench.training.device import make_accelerator
from petl_bench.training.loop import TrainingLoop, build_optimizer, build_schedule, reweighted


def weights(cfg, record):
    from petl_bench.run.lifecycle import identify

    return load_file(identify(cfg).folder / "adapter" / "adapter_model.safetensors")


def test_accumulation_changes_memory_but_not_the_update(tiny):
    # Without dropout, whose masks depend on the passes.
    plain = [
        "method=head",
        "train.precision=fp32",
        "+backbone.architecture.hidden_dropout_prob=0",
        "+backbone.architecture.attention_probs_dropout_prob=0",
    ]
    once, split = tiny(*plain), tiny(*plain, "train.accumulation=5")
    first, second = run(once), run(split)
    assert first.run_key != second.run_key
    for name, tensor in weights(once, first).items():
        assert torch.allclose(tensor, weights(split, second)[name], atol=1e-6), name
    assert first.history[-1].train_loss == pytest.approx(second.history[-1].train_loss, abs=1e-5)


def test_a_reweighted_loss_is_the_weighted_mean_by_hand_and_keeps_what_a_method_adds():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    labels, weights = torch.tensor([0, 1, -100]), np.array([0.5, 2.0])
    # -log of the softmax of the label; the third row has none.
    of_rows = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))]
    added = 0.25
    loss = reweighted(torch.tensor(sum(of_rows) / 2 + added), logits, labels, weights)
    assert loss.item() == pytest.approx((0.5 * of_rows[0] + 2.0 * of_rows[1]) / 2.5 + added, abs=1e-6)


def test_class_weights_change_the_update_alike_for_any_accumulation(tiny):
    plain = [
        "method=head",
        "train.precision=fp32",
        "task.class_share=[0.8,0.2]",
        "+backbone.architecture.hidden_dropout_prob=0",
        "+backbone.architecture.attention_probs_dropout_prob=0",
    ]
    unweighted = run(tiny(*plain))
    once, split = (tiny(*plain, "train.class_weights=balanced", *more) for more in ([], ["train.accumulation=5"]))
    first, second = run(once), run(split)
    assert len({unweighted.run_key, first.run_key, second.run_key}) == 3
    assert first.config["train"]["class_weights"] == "balanced"
    for name, tensor in weights(once, first).items():
        assert torch.allclose(tensor, weights(split, second)[name], atol=1e-6), name
    assert first.history[-1].train_loss == pytest.approx(second.history[-1].train_loss, abs=1e-5)
    assert first.history[-1].train_loss != pytest.approx(unweighted.history[-1].train_loss, abs=1e-3)


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_class_weights_are_refused_where_a_row_has_no_one_class(kind):
    with pytest.raises(RequestError, match=f"not for task.type={kind}"):
        load_config(["task=custom", "task.train_file=x.csv", f"task.type={kind}", "train.class_weights=balanced"])


def test_steps_win_over_epochs_and_evaluations_come_when_asked(tiny):
    record = run(tiny("train.max_steps=7", "train.evaluate_every=3"))
    assert [entry.step for entry in record.history] == [3, 6, 7]
    assert [entry.epoch for entry in record.history] == [0.75, 1.5, 1.75]


def test_early_stopping_waits_for_its_patience(tiny):
    # A vanishing learning rate: no evaluation after the first is better.
    record = run(tiny("train.epochs=9", "train.early_stopping_patience=2", "train.learning_rate=1e-12"))
    assert len(record.history) == 3
    assert record.scores.best_epoch == 1.0


def test_the_best_weights_are_reported_and_kept(tiny):
    options = ["method=full", "train.epochs=4", "train.learning_rate=3e-3", "task.num_train_examples=100"]
    record = run(tiny(*options))
    metric = record.protocol.metric
    scores = [entry.scores[metric] for entry in record.history]
    assert record.scores.best[metric] == max(scores)
    assert record.scores.last[metric] == scores[-1]
    assert record.scores.best_epoch == 1.0 + scores.index(max(scores))


def test_a_huge_learning_rate_diverges_with_a_way_out(tiny):
    with pytest.raises(DivergedError, match=r"lower train\.learning_rate"):
        run(tiny("method=full", "train.learning_rate=1e30", "train.epochs=8", "train.max_grad_norm=1e30"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_that_the_cpu_has(tiny, precision):
    record = run(tiny(f"train.precision={precision}"))
    assert record.protocol.precision == precision
    assert math.isfinite(record.history[-1].train_loss)


def test_seconds_and_examples_are_counted(tiny):
    before = datetime.now(UTC).replace(microsecond=0)
    record = run(tiny("train.max_steps=3"))
    time = record.time
    assert time.warm_up_updates == 0
    assert time.train_examples_per_second * time.train_seconds == pytest.approx(48)
    assert 0 <= time.padding_share < 1
    assert time.eval_seconds == pytest.approx(sum(entry.seconds for entry in record.history))
    assert time.features_seconds is time.cache_seconds is None
    assert record.key_version == KEY_VERSION
    assert before <= datetime.fromisoformat(record.ended_at) <= datetime.now(UTC)


def test_rates_leave_the_first_updates_out(tiny):
    assert run(tiny("train.epochs=2")).time.warm_up_updates == 3
    result = Progress(
        num_steps=8, num_examples=128, num_tokens=1000, num_padded_tokens=1250, train_seconds=9.0, eval_seconds=1.0,
        warm_up=WarmUp(3, 48, 400, 500, train_seconds=4.0),
    )  # fmt: skip
    time = describe_time(result, BatchSources({}), make_accelerator(TrainConfig(device="cpu", precision="fp32")))
    assert (time.train_seconds, time.warm_up_updates, time.warm_up_seconds) == (9.0, 3, 4.0)
    assert time.train_examples_per_second == (128 - 48) / 5
    assert time.train_tokens_per_second == (1000 - 400) / 5
    assert time.padding_share == pytest.approx(0.2)


def test_rates_leave_out_what_is_compiled_whenever_it_is(tiny, monkeypatch):
    """On a clock that only updates (2 s), evaluations (10 s) and the compiler (100 s) move."""
    update, selection_scores, now = TrainingLoop._update, Evaluator.selection_scores, [0.0]

    def compiling(seconds):
        with callback_handler.install_callbacks(CallbackTrigger.DYNAMO, "0"):
            now[0] += seconds

    def updated(self, indices):
        update(self, indices)
        now[0] += 2
        # Among the first updates, which rates leave out anyway, and after them.
        if self.state.progress.num_steps in (1, 6):
            compiling(100)

    def evaluated(self):
        now[0] += 10
        compiling(100)
        return selection_scores(self)

    monkeypatch.setattr(TrainingLoop, "_update", updated)
    monkeypatch.setattr(Evaluator, "selection_scores", evaluated)
    with monkeypatch.context() as patch, torch.compiler.set_stance("force_eager"):
        patch.setattr("time.perf_counter", lambda: now[0])
        time = run(tiny("train.compile=true", "train.epochs=2")).time
    assert (time.train_seconds, time.compile_seconds, time.eval_seconds) == (8 * 2 + 200, 200, 220)
    assert (time.warm_up_updates, time.warm_up_seconds) == (3, 106)
    assert time.train_examples_per_second == 5 * 16 / (5 * 2)
    assert not callback_handler.start_callbacks
    assert run(tiny("train.max_steps=1")).time.compile_seconds is None


def test_adalora_reallocates_its_ranks(tiny):
    record = run(tiny("method=peft", "method.type=ADALORA", "+method.args.init_r=4", "+method.args.target_r=2",
                      "+method.args.tinit=1", "+method.args.tfinal=1", "+method.args.deltaT=1"))  # fmt: skip
    assert record.status == "finished"
    config = tiny("method=peft", "method.type=ADALORA", "+method.args.init_r=4", "+method.args.target_r=2",
                  "+method.args.tinit=1", "+method.args.tfinal=1", "+method.args.deltaT=1")  # fmt: skip
    import json

    from petl_bench.run.lifecycle import identify

    saved = json.loads((identify(config).folder / "adapter" / "adapter_config.json").read_text())
    assert saved["rank_pattern"], "the ranks were never reallocated"


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(3, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.classifier = torch.nn.Linear(3, 2)
        self.frozen = torch.nn.Linear(3, 3).requires_grad_(False)


def test_biases_and_norms_are_not_decayed_and_the_head_has_its_own_rate():
    model = Toy()
    train = TrainConfig(learning_rate=1e-3, head_learning_rate=1e-1, weight_decay=0.1)
    optimizer = build_optimizer(model, train, lambda name: name.startswith("classifier"))
    settings = {
        id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    named = {name: settings[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert named == {
        "body.weight": (1e-3, 0.1),
        "body.bias": (1e-3, 0.0),
        "norm.weight": (1e-3, 0.0),
        "norm.bias": (1e-3, 0.0),
        "classifier.weight": (1e-1, 0.1),
        "classifier.bias": (1e-1, 0.0),
    }
    assert len(settings) == 6


# Every method on BERT, and on one other architecture in turn.
IN_TURN = {(method, ARCHITECTURES[1 + number % (len(ARCHITECTURES) - 1)]) for number, method in enumerate(METHODS)}


@pytest.mark.parametrize(("method", "architecture"), [pair for pair in MATRIX if pair[1] == "bert" or pair in IN_TURN])
def test_exactly_biases_and_norms_are_not_decayed_whatever_the_method(method, architecture):
    model, backbone = adapted(method, architecture, two_layers(architecture))
    in_norms = {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters()
    }
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.1), backbone.anatomy.in_head)
    undecayed = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = "bias" in name.rpartition(".")[2] or "_bias." in name
            assert (id(parameter) in undecayed) == (is_bias or name in in_norms), name


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("linear", [0.0, 0.5, 1.0, 0.875, 0.75]),
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("cosine", [0.0, 0.5, 1.0, 0.962, 0.854]),
    ],
)
def test_schedules_warm_up_then_decay(schedule, at):
    model = Toy()
    train = TrainConfig(learning_rate=1.0, schedule=schedule, warmup_share=0.2)
    optimizer = build_optimizer(model, train, lambda _: False)
    scheduler = build_schedule(optimizer, train, 10)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(at, abs=1e-3)
