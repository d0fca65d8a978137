"""CoDA's training phase on texts without labels: routed layers learn to give the states of the dense encoder.

The paper has such a phase; its objective, steps and batches could not be read, so all of this is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from petl_bench.methods.coda import CodaPretraining
from petl_bench.methods.modules import pool

if TYPE_CHECKING:
    from peft import PeftModel

    from petl_bench.methods.coda.model import CodaConfig

# Reductions at which the held-out texts are compared with the dense encoder.
_COMPARED_AT = (3.0, 5.0)


@dataclass
class DistillationOutput(BaseModelOutput):
    """The loss of a batch, and a placeholder for a model's outputs where only their type matters."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class CodaDistillation(nn.Module):
    """An encoder with CoDA as student, and the same encoder without it as teacher; a forward pass gives a loss.

    Each update takes two passes of the student: one at the current largest reduction, and one at a reduction that is
    newly drawn. The largest one grows at first. No pass uses dropout.

    Args:
        student: The bare encoder with a CoDA adapter, as PEFT makes it.
        settings: Settings of the phase.
        num_steps: Number of updates of the whole phase.
        seed: Seed of the reductions that are drawn.
    """

    def __init__(self, student: PeftModel, settings: CodaPretraining, num_steps: int, seed: int) -> None:
        super().__init__()
        self.student, self.settings, self.num_steps, self.seed = student, settings, num_steps, seed
        # Updates that are done.
        self.step = 0

    @property
    def _config(self) -> CodaConfig:
        config: Any = self.student.peft_config[self.student.active_adapter]
        return config

    def train(self, mode: bool = True) -> CodaDistillation:
        """Stays in evaluation mode, in which no state is dropped; gradients are computed all the same."""
        return super().train(mode=False)

    def forward(self, **inputs: torch.Tensor) -> DistillationOutput:
        """The loss of a batch of texts: the mean distance from the dense encoder over the passes of this update."""
        teacher = self.dense_states(inputs)
        losses = [self.distance(inputs, teacher, reduction, self.attention) for reduction in self.reductions]
        loss = torch.stack(losses).mean()
        # With gradients: of several processes, one without rows must still take part in the backward pass.
        return DistillationOutput(loss=loss, logits=loss[None])

    @property
    def reductions(self) -> tuple[float, float]:
        """The reductions of the next update's passes: the current largest one, and one drawn below it."""
        settings = self.settings
        grown = min(1.0, self.step / max(1.0, settings.widening_share * self.num_steps))
        largest = 2.0 + grown * (settings.largest_reduction - 2.0)
        drawn = np.random.default_rng([self.seed, self.step]).uniform(min(1.5, largest), largest)
        return largest, float(drawn)

    @property
    def attention(self) -> str:
        """The form of attention of the next update."""
        if self.settings.attention != "both":
            return self.settings.attention
        return "k2all" if self.step < self.settings.k2all_share * self.num_steps else "k2k"

    @property
    def attentions(self) -> list[str]:
        """The forms of attention that are trained."""
        return ["k2all", "k2k"] if self.settings.attention == "both" else [self.settings.attention]

    def dense_states(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The states after each layer of the dense encoder, each of shape (batch, tokens, d)."""
        with torch.no_grad(), self.student.disable_adapter():
            return list(self.student(**inputs, output_hidden_states=True).hidden_states[1:])

    def distance(
        self, inputs: dict[str, torch.Tensor], teacher: list[torch.Tensor], reduction: float, attention: str
    ) -> torch.Tensor:
        """How far the student's states are from the teacher's.

        Args:
            inputs: A batch, as the encoder takes it.
            teacher: `dense_states` of it.
            reduction: r = n / k of the pass.
            attention: `k2k` or `k2all`.

        Returns:
            The last layer's distance, and `inner_weight` times 1/L of each below it. It is the mean over the tokens, in
            which the first one, read by classifiers, counts `first_token_weight` times, or that of the mean states.
        """
        config = self._config
        before = config.reduction, config.attention
        config.reduction, config.attention = reduction, attention
        try:
            states = self.student(**inputs, output_hidden_states=True).hidden_states[1:]
        finally:
            config.reduction, config.attention = before
        if self.settings.compared == "mean":
            mask = _token_mask(inputs)
            states, teacher = ([pool(state, mask, "mean")[:, None] for state in layers] for layers in (states, teacher))
            weights = torch.full_like(mask[:, :1], 1 / len(mask))
        else:
            weights = self._token_weights(inputs)
        by_layer = torch.stack([_distance(*pair, weights) for pair in zip(states, teacher, strict=True)])
        inner = by_layer[:-1].sum() / len(by_layer)
        return self.settings.inner_weight * inner + by_layer[-1]

    def loss_terms(self, lengths: np.ndarray) -> float:
        """The weight of some texts among others: the number of rows, or of tokens with the first ones' extra weight.

        Args:
            lengths: Tokens of each text, shape (rows,).
        """
        if self.settings.compared == "mean":
            return len(lengths)
        return float(lengths.sum() + (self.settings.first_token_weight - 1) * len(lengths))

    def _token_weights(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The share of each token in the distance, shape (batch, tokens); 0 for padding."""
        mask = _token_mask(inputs)
        is_first = torch.arange(mask.shape[1], device=mask.device) == mask.argmax(dim=-1, keepdim=True)
        weights = mask * torch.where(is_first, self.settings.first_token_weight, 1.0)
        return weights / weights.sum()

    @torch.no_grad()
    def held_out_distances(self, batches: Iterable[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Distances on texts that were not trained on.

        Args:
            batches: Batches of such texts, as the encoder takes them.

        Returns:
            The distance of all rows, by form of attention and reduction, and the mean of all as `distance`.
        """
        passes = [(attention, reduction) for attention in self.attentions for reduction in _COMPARED_AT]
        sums, count = dict.fromkeys(passes, 0.0), 0.0
        for inputs in batches:
            teacher = self.dense_states(inputs)
            terms = self.loss_terms(_token_mask(inputs).sum(dim=-1).cpu().numpy())
            count += terms
            for attention, reduction in passes:
                sums[attention, reduction] += float(self.distance(inputs, teacher, reduction, attention)) * terms
        named = {f"{attention}_r{reduction:g}": total / count for (attention, reduction), total in sums.items()}
        return {"distance": sum(named.values()) / len(named), **named}


def _token_mask(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """1 for tokens, 0 for padding, shape (batch, tokens)."""
    ids = inputs["input_ids"]
    return inputs.get("attention_mask", torch.ones_like(ids)).float()


def _distance(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """One minus the cosine plus half the squared error in units of the teacher's variance; a weighted mean."""
    angle = 1.0 - functional.cosine_similarity(student, teacher, dim=-1)
    error = (student - teacher).square().mean(dim=-1) / teacher.var(dim=-1, unbiased=False).clamp(min=1e-6)
    return ((angle + 0.5 * error) * weights).sum()
