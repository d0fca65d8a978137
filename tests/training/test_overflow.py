"""fp16: an update whose gradient overflows is skipped and counted; neither the schedule nor the method sees it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from petl_bench.config import RunConfig
from petl_bench.errors import DivergedError, Interrupted
from petl_bench.methods.peft import RankAllocation
from petl_bench.records.schema import Record
from petl_bench.run.run import run
from petl_bench.training import TrainConfig, device
from petl_bench.training.loop import TrainingLoop, build_optimizer, build_schedule, try_update

ADALORA = ["method=peft", "method.type=ADALORA", "+method.args.init_r=4", "+method.args.target_r=2"]


# Few rows, as fp16 is slow on a CPU.
SMALL = ["backbone.architecture.num_hidden_layers=2", "task.max_length=16", "train.eval_batch_size=200"]

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclass
class Fp16:
    """Makes runs in fp16, and keeps the loss scaler of each."""

    device: str
    tiny: Callable[..., RunConfig]
    scalers: list[torch.amp.GradScaler] = field(default_factory=list)

    def run(self, *overrides):
        precision = "fp16" if self.device == "cuda" else "fp32"
        return run(self.tiny(*SMALL, f"train.device={self.device}", f"train.precision={precision}", *overrides))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_CUDA)])
def fp16(request, tiny, monkeypatch):
    """Makes runs in fp16, on a GPU where there is one. On the CPU, which users are refused, torch can do it too.

    The scale begins so low that only those gradients overflow which a test makes do so.
    """
    make, made = device.make_accelerator, Fp16(request.param, tiny)

    def scaling(train):
        accelerator = make(train)
        accelerator.scaler = torch.amp.GradScaler(request.param, init_scale=2.0**8)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        made.scalers.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr("petl_bench.run.run.make_accelerator", scaling)
    return made


def overflow(monkeypatch, at):
    """Makes the gradients of these updates overflow, counted from 1 with those that are skipped."""
    forward_backward = TrainingLoop._forward_backward

    def overflowing(self, indices, batch_rows):
        share = forward_backward(self, indices, batch_rows)
        if self.state.progress.num_steps + 1 in at:
            self.parameters[0].grad[...] = math.inf
        return share

    monkeypatch.setattr(TrainingLoop, "_forward_backward", overflowing)


def recorded(monkeypatch):
    """The states, with learning rates and weights after each update, of the training that is made next."""
    update, seen = TrainingLoop._update, []

    def watched(self, indices):
        update(self, indices)
        weights = torch.cat([parameter.detach().flatten().clone() for parameter in self.parameters])
        seen.append((self.state.optimizer.param_groups[0]["lr"], weights))

    monkeypatch.setattr(TrainingLoop, "_update", watched)
    return seen


def scaling(optimizer, scaler):
    """The optimizer as the accelerator prepares it."""
    device.make_accelerator(TrainConfig(device=scaler._device, precision="fp32"))
    return AcceleratedOptimizer(optimizer, scaler=scaler)


class TestOneUpdate:
    @pytest.mark.parametrize("fused", [True, False])
    def test_an_overflow_is_seen_whether_or_not_the_optimizer_is_fused(self, fused):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        made, scales = [], []
        for factor in (1.0, math.inf, 1.0, math.nan):
            scaler.scale((weight * factor).sum()).backward()
            made.append(try_update(scaling(optimizer, scaler), scaler))
            scales.append(scaler.get_scale())
            optimizer.zero_grad()
        assert made == [True, False, True, False]
        assert scales == [8.0, 4.0, 4.0, 2.0]
        # Adam's first steps along an unchanging gradient are as long as the learning rate.
        assert torch.allclose(weight, torch.full((3,), 0.8), atol=1e-6)

    def test_without_loss_scaling_every_update_is_made(self):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        weight.sum().backward()
        assert try_update(optimizer, None)
        assert not torch.equal(weight, torch.ones(3))


def test_a_skipped_update_moves_no_weight_and_no_schedule(fp16, monkeypatch):
    overflow(monkeypatch, at=(2, 3))
    seen = recorded(monkeypatch)
    record = fp16.run("train.max_steps=6", "train.warmup_share=0", "train.learning_rate=6e-3")
    rates, weights = zip(*seen, strict=True)
    # Linear decay over six updates, of which four are made.
    assert rates == pytest.approx([5e-3, 5e-3, 5e-3, 4e-3, 3e-3, 2e-3])
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(weights)]
    assert moved == [False, False, True, True, True]
    assert record.skipped_updates == 2
    assert Record.from_dict(record.to_dict()).skipped_updates == 2
    assert record.history[-1].step == 6
    assert fp16.scalers[0].get_scale() == 2.0**6


def test_a_run_without_loss_scaling_counts_none(tiny):
    record = run(tiny("train.max_steps=1"))
    assert record.skipped_updates is None
    older = record.to_dict()
    del older["skipped_updates"]
    assert Record.from_dict(older).skipped_updates is None


def test_adalora_never_sees_a_skipped_update(fp16, monkeypatch):
    overflow(monkeypatch, at=(2, 4))
    told, allocators = [], []
    on_update = RankAllocation.on_update

    def watched(self, step):
        told.append(step)
        on_update(self, step)
        allocators.append(self._allocator)

    monkeypatch.setattr(RankAllocation, "on_update", watched)
    record = fp16.run(*ADALORA, "train.max_steps=6")
    assert record.status == "finished"
    assert told == [1, 2, 3, 4]
    importance = [*allocators[0].ipt.values(), *allocators[0].exp_avg_ipt.values()]
    assert importance
    assert all(torch.isfinite(values).all() for values in importance)


def test_a_resumed_training_has_the_same_scale_and_bits(fp16, monkeypatch, tmp_path):
    overflow(monkeypatch, at=(2, 5))
    grows = torch.amp.GradScaler.__init__

    def soon(self, *arguments, **settings):
        # A scale that grows while the training lasts shows that the count of updates since the last overflow is kept.
        grows(self, *arguments, **settings | {"growth_interval": 2})

    monkeypatch.setattr(torch.amp.GradScaler, "__init__", soon)
    settings = ["train.max_steps=9", "train.checkpoint_seconds=0"]
    undisturbed = fp16.run(*settings, f"runs_dir={tmp_path / 'undisturbed'}")
    update = TrainingLoop._update

    def interrupted(self, indices):
        if self.state.progress.num_steps == 4:
            raise Interrupted(15)
        update(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_update", interrupted)
        with pytest.raises(Interrupted):
            fp16.run(*settings)
    resumed = fp16.run(*settings)
    assert resumed.resumed_at_updates == [4]
    losses, wanted = ([entry.train_loss for entry in record.history] for record in (resumed, undisturbed))
    # The same kernels of a GPU may give other bits.
    assert losses == (wanted if fp16.device == "cpu" else pytest.approx(wanted, rel=1e-3))
    assert (resumed.skipped_updates, undisturbed.skipped_updates) == (2, 2)
    first, _, last = fp16.scalers
    assert last.get_scale() == first.get_scale()
    assert last.state_dict() == first.state_dict()
    # Halved by each overflow, doubled after every two updates without one.
    assert last.get_scale() == 2.0**8 / 2 * 2 / 2 * 2 * 2


def test_gradients_that_overflow_at_every_scale_end_the_run_as_diverged(fp16, monkeypatch):
    overflow(monkeypatch, at=range(1, 100))
    with pytest.raises(DivergedError, match=r"train\.precision=bf16"):
        fp16.run("train.max_steps=90", "train.evaluate_every=90")


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
def test_real_fp16_overflows_are_skipped(place):
    """No injection: the scale begins so high that the gradients of fp16 overflow by themselves."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)).to(place)
    optimizer = build_optimizer(model, TrainConfig(learning_rate=1e-2, warmup_share=0.0), lambda _: False)
    schedule = build_schedule(optimizer, TrainConfig(warmup_share=0.0), 40)
    scaler = torch.amp.GradScaler(place, init_scale=2.0**24)
    wrapped = scaling(optimizer, scaler)
    inputs, labels, made = torch.randn(16, 8, device=place), torch.zeros(16, dtype=torch.long, device=place), []
    for _ in range(20):
        with torch.autocast(place, torch.float16):
            loss = torch.nn.functional.cross_entropy(model(inputs).float(), labels)
        scaler.scale(loss).backward()
        made.append(try_update(wrapped, scaler))
        if made[-1]:
            schedule.step()
        optimizer.zero_grad()
    skipped = made.count(False)
    assert 2 <= skipped < 20
    assert made == [False] * skipped + [True] * (20 - skipped)
    assert scaler.get_scale() == 2.0 ** (24 - skipped)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - (20 - skipped) / 40))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
