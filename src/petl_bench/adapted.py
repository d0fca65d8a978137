"""Builds the model that a run trains: the backbone with its head, adapted by the method."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import TYPE_CHECKING

from petl_bench.backbones.load import Backbone
from petl_bench.config import RunConfig
from petl_bench.errors import RequestError
from petl_bench.methods.context import AdaptContext
from petl_bench.methods.registry import get_method
from petl_bench.records.schema import Params

if TYPE_CHECKING:
    from torch import nn


def build_adapted(
    cfg: RunConfig, backbone: Backbone, labels: list[str] | None, num_training_steps: int, device: str = "cpu"
) -> tuple[nn.Module, Params]:
    """Builds the backbone with its head, applies the method, counts parameters.

    Args:
        cfg: The run.
        backbone: Opened with the run's layers.
        labels: Names of the classes; None for regression.
        num_training_steps: Updates to come.
        device: "cpu", or "meta" for a model without memory.

    Raises:
        RequestError: where the method does not fit, leaves nothing to train, or reads what `train.last_layer` drops.
    """
    import torch
    from accelerate.utils import set_seed

    from petl_bench.measure.params import count_backbone, count_parameters
    from petl_bench.training.last_layer import narrow_last_layer

    method = get_method(cfg.method.name)
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps)
    set_seed(cfg.train.seed)
    model: nn.Module = backbone.build_model(len(labels) if labels else 1, labels, device)
    num_backbone = count_backbone(model, backbone.anatomy.in_head)
    with torch.device("meta") if device == "meta" else nullcontext():
        model = method.load_adapt()(model, cfg.method, context)
    counts = count_parameters(model, num_backbone, backbone.anatomy.in_head)
    if counts.trainable == 0:
        raise RequestError(f"method={cfg.method.name} leaves nothing to train with layers={cfg.layers.name}.")
    if cfg.train.last_layer == "first_token":
        narrow_last_layer(model, backbone.anatomy)
    if cfg.train.gradient_checkpointing:
        # The reentrant kind would not reach adapters below frozen embeddings.
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        # It made the embeddings' output ask for a gradient, for the reentrant kind's sake.
        model.disable_input_require_grads()  # type: ignore[operator]
    share = counts.trainable_share_of_backbone_percent
    return model, Params(**dataclasses.asdict(counts), trainable_share_of_backbone_percent=share)
