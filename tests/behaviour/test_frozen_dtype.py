"""`backbone.dtype=bf16`: every method trains in fp32 on frozen weights in bf16, and the estimate counts them."""

from __future__ import annotations

import pytest
import torch

from behaviour.matrix import ARCHITECTURES, LABELS, METHODS, batch, two_layers
from petl_bench.backbones.load import open_backbone
from petl_bench.catalog import TINY_BACKBONES
from petl_bench.config import load_config, resolved
from petl_bench.errors import RequestError
from petl_bench.estimate.costs import estimate_costs
from petl_bench.estimate.memory import measure_update
from petl_bench.model import build_adapted
from petl_bench.training.loop import build_optimizer

TRAINS_ALL = ("full",)
PAIRS = [
    (name, ARCHITECTURES[number % len(ARCHITECTURES)])
    for number, name in enumerate(name for name in METHODS if name not in TRAINS_ALL)
]


def built(method, architecture, dtype):
    overrides = ["task=mrpc", f"backbone={TINY_BACKBONES[architecture]}", two_layers(architecture)]
    overrides += ["train.precision=bf16", f"backbone.dtype={dtype}", "train.batch_size=4", "task.max_length=10"]
    cfg = load_config([*overrides, *METHODS[method].overrides])
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False)
    return cfg, backbone, build_adapted(cfg, backbone, ["a", "b"], 10)[0]


@pytest.mark.parametrize(("method", "architecture"), PAIRS)
def test_what_is_trained_stays_in_fp32_and_moves(method, architecture):
    if architecture in METHODS[method].not_on:
        architecture = "bert"
    cfg, backbone, model = built(method, architecture, "bf16")
    dtypes = {
        is_trained: {p.dtype for p in model.parameters() if p.requires_grad == is_trained} for is_trained in (0, 1)
    }
    assert dtypes == {0: {torch.bfloat16}, 1: {torch.float32}}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model.train(), cfg.train, backbone.anatomy.in_head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch(), labels=LABELS).loss
    loss.backward()
    assert torch.isfinite(loss)
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert changed <= {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_estimate_counts_them():
    counted = {}
    for dtype in ("fp32", "bf16"):
        cfg, backbone, model = built("lora", "bert", dtype)
        optimizer = build_optimizer(model.train(), cfg.train, backbone.anatomy.in_head)
        rows = {"input_ids": torch.zeros(4, 10, dtype=torch.int64), "labels": torch.zeros(4, dtype=torch.int64)}
        real = measure_update(model, optimizer, [rows], autocast=torch.bfloat16, max_grad_norm=1.0)
        estimate = estimate_costs(cfg, backbone, ["a", "b"]).estimate
        assert (estimate.weights_bytes, estimate.peak_bytes) == (real.weights, real.peak)
        counted[dtype] = estimate.weights_bytes
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert counted["fp32"] - counted["bf16"] == 2 * frozen


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.precision=fp32"], r"train\.precision=fp32.* need train\.precision=bf16"),
        (["train.precision=auto"], r"train\.precision=fp32.* need train\.precision=bf16"),
        (["train.precision=bf16", "method=full"], r"method=full trains all"),
        (["train.precision=bf16", "backbone.dtype=int8"], r"backbone\.dtype"),
    ],
)
def test_settings_that_contradict_it(overrides, message):
    with pytest.raises(RequestError, match=message):
        cfg = resolved(load_config(["task=mrpc", "backbone=tiny_bert", "backbone.dtype=bf16", *overrides]))
        build_adapted(cfg, open_backbone(cfg.backbone, cfg.layers, weights=False), ["a", "b"], 10)
