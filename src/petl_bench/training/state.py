"""The state of a training: what it counted, and all that it goes on from after an interruption."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from petl_bench.records.schema import HistoryEntry

if TYPE_CHECKING:
    from petl_bench.training.loop import Fitter


@dataclass(frozen=True)
class WarmUp:
    """What was done by the end of the first updates; nothing where a training is no longer than they are."""

    num_steps: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    train_seconds: float = 0.0


@dataclass
class FitResult:
    """What training did.

    Attributes:
        history: One entry an evaluation.
        best: Index of the best one.
        best_state: Trainable tensors as they were then, on the CPU.
        num_steps, num_examples: What was seen, over all processes.
        num_tokens, num_padded_tokens: What this process saw, without and with padding.
        train_seconds: Evaluations excluded.
        eval_seconds: Evaluations alone.
        warm_up: What of all this fell to the first updates.
        resumed_at: Updates after which the training was cut off and went on in another process.
    """

    history: list[HistoryEntry] = field(default_factory=list)
    best: int = 0
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    num_steps: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    warm_up: WarmUp = field(default_factory=WarmUp)
    resumed_at: list[int] = field(default_factory=list)


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trainable tensors, on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Puts tensors kept by `trainable_state` back."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


class MethodState(Protocol):
    """What a method keeps beside its parameters while it trains."""

    def take(self) -> Any:
        """Dicts, lists and tuples of tensors and of what JSON knows."""

    def put(self, state: Any) -> None:
        """Puts back what `take` gave."""


class NoMethodState:
    """Of a method that keeps nothing."""

    def take(self) -> None:
        """Takes nothing."""

    def put(self, state: Any) -> None:
        """Puts nothing back."""


def take_state(fitter: Fitter) -> dict[str, Any]:
    """All that the next updates depend on, and what was counted so far.

    Batches follow from the seed and the number of updates, so a sampler has no state of its own.
    """
    model, scaler = fitter.accelerator.unwrap_model(fitter.model), fitter.accelerator.scaler
    result = fitter.result
    counted = {item.name: getattr(result, item.name) for item in dataclasses.fields(result)}
    return {
        "parameters": {name: one for name, one in model.named_parameters() if one.requires_grad},
        "buffers": dict(model.named_buffers()),
        "optimizer": fitter.optimizer.state_dict(),
        "schedule": fitter.schedule.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "method": fitter.method_state.take(),
        "result": counted
        | {"history": [dataclasses.asdict(entry) for entry in result.history]}
        | {"warm_up": dataclasses.asdict(result.warm_up)},
        "losses": [loss.detach() for loss in fitter.losses],
        "generators": _generators(fitter.accelerator.device),
    }


def put_state(fitter: Fitter, state: dict[str, Any]) -> None:
    """Puts back what `take_state` took from a training with the same settings."""
    model, scaler = fitter.accelerator.unwrap_model(fitter.model), fitter.accelerator.scaler
    device = fitter.accelerator.device
    load_trainable_state(model, state["parameters"])
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in state["buffers"].items():
            buffers[name].copy_(tensor)
    fitter.optimizer.load_state_dict(state["optimizer"])
    fitter.schedule.load_state_dict(state["schedule"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])
    fitter.method_state.put(state["method"])
    history = [HistoryEntry(**entry) for entry in state["result"]["history"]]
    warm_up = WarmUp(**state["result"]["warm_up"])
    fitter.result = FitResult(**(state["result"] | {"history": history, "warm_up": warm_up}))
    fitter.losses = [loss.to(device) for loss in state["losses"]]
    _set_generators(state["generators"], device)


def _generators(device: torch.device) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_generators(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
