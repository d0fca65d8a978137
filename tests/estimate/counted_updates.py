"""Models adapted on a real or a meta device, and the bytes that an update of one takes."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from composed import composed
from petl_bench.backbones.load import open_backbone
from petl_bench.estimate.memory import measure_update
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext

ALL_TARGETS = "method.targets=[query,key,value,attention_output,feed_forward_in,feed_forward_out]"


def adapted(device: str, *overrides: str):
    cfg = composed("task=smoke", *overrides)
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False)
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=100)
    with torch.device("meta") if device == "meta" else nullcontext():
        return adapt(backbone.build_model(2, device=device), cfg.method, context)


def batch(rows, length, device="cpu"):
    return {
        "input_ids": torch.zeros(rows, length, dtype=torch.int64, device=device),
        "labels": torch.zeros(rows, dtype=torch.int64, device=device),
    }


def counted(model, mode=None, rows=(3,), length=10, **options):
    with mode or nullcontext():
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        device = next(model.parameters()).device
        batches = [batch(number, length, device) for number in rows]
        return measure_update(model, optimizer, batches, max_grad_norm=1.0, **options)
