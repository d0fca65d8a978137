"""Parts that several methods share: a bottleneck, and a small network next to a frozen encoder.

A side network (FLAT, ladder side-tuning) has its own classifier. The encoder runs without dropout and without a
graph; its hidden states feed the side network, whose output the new classifier reads: pooled to classify a sequence, or
one state a token to tag. Nothing is propagated back into the encoder.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.activations import ACT2FN

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.methods.base import AnatomyTuner, TunerLayer


class Bottleneck(nn.Module):
    """Computes `scale * (W2 g(W1 x + b1) + b2)`; its user adds the input if the method requires it.

    Args:
        hidden_size: Width d of input and output.
        size: Width m of the bottleneck.
        activation: Name of g in transformers' table.
        init: "truncated_normal" cuts at two standard deviations; "normal" does not; "lora" starts the down-projection
            as Kaiming-uniform and the up-projection at zero. Biases start at zero.
        init_std: Standard deviation before it is cut.
        scale: Factor on the output.
        device: Where the parameters are made.
    """

    def __init__(
        self,
        hidden_size: int,
        size: int,
        *,
        activation: str,
        init: str,
        init_std: float = 0.02,
        scale: float = 1.0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, size, device=device)
        self.up = nn.Linear(size, hidden_size, device=device)
        self.activation = ACT2FN[activation]
        self.scale = scale
        self._reset(init, init_std)

    def _reset(self, init: str, std: float) -> None:
        if init == "lora":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)
        else:
            for linear in (self.down, self.up):
                initialise(linear.weight, init, std)
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (..., d) in and out, in the input's dtype."""
        hidden = self.activation(self.down(x.to(self.down.weight.dtype)))
        update: torch.Tensor = self.up(hidden)
        return (update if self.scale == 1.0 else self.scale * update).to(x.dtype)


def initialise(weight: torch.Tensor, init: str, std: float) -> None:
    """Draws a weight from a normal distribution, cut at two standard deviations or not."""
    if init == "truncated_normal":
        # The defaults of torch, a=-2 and b=2, are absolute and would cut nothing.
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.normal_(weight, std=std)


# The pooling of taggers, whatever the settings say: one state per token.
NO_POOL = "none"


class SideOutput:
    """Carries the side network's output from the encoder to the classifier, within one forward."""

    def __init__(self) -> None:
        self.tensor: torch.Tensor | None = None


class SideLayer(TunerLayer):
    """Base of `SideEncoder` and `SideClassifier`."""

    unmergeable: ClassVar[str | None] = "the side network reads every layer and replaces the head"

    def __init__(self, base_layer: nn.Module, side_output: SideOutput) -> None:
        super().__init__(base_layer)
        self.side_output = side_output


class SideEncoder(SideLayer):
    """The frozen encoder, with the side network that reads its states.

    Args:
        base_layer: The encoder.
        side_output: Shared with the classifier.
        new_network: Builds the side network of an adapter from its config.
        container: Name of the attribute that holds the side networks by adapter.
    """

    def __init__(self, base_layer: nn.Module, side_output: SideOutput, new_network: Any, container: str) -> None:
        super().__init__(base_layer, side_output)
        self.new_network, self.container = new_network, container
        self.adapter_layer_names = (container,)
        setattr(self, container, nn.ModuleDict({}))

    @property
    def networks(self) -> nn.ModuleDict:
        """The side networks by adapter."""
        networks: nn.ModuleDict = self._modules[self.container]  # type: ignore[assignment]
        return networks

    def update_layer(self, adapter_name: str, config: Any, device: torch.device | None = None) -> None:
        """Adds another adapter."""
        with torch.device(device or "cpu"):
            self.networks[adapter_name] = self.new_network(config)

    def train(self, mode: bool = True) -> SideEncoder:
        """Keeps the encoder in eval mode: its states do not change from step to step."""
        super().train(mode)
        if not self.disable_adapters:
            self.base_layer.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The encoder's own outputs."""
        names = self.active_in(self.networks)
        if not names:
            return self.base_layer(*args, **kwargs)
        if len(names) > 1:
            raise ValueError("one side network can classify at a time: activate one of " + ", ".join(names))
        config: Any = self.base_layer.config
        with_states = kwargs.pop("output_hidden_states", None)
        with_states = config.output_hidden_states if with_states is None else with_states
        kwargs["return_dict"] = True
        with torch.no_grad():
            outputs = self.base_layer(*args, output_hidden_states=True, **kwargs)
        states, mask = outputs.hidden_states, kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(states[0].shape[:2], device=states[0].device)
        self.side_output.tensor = self.networks[names[0]]([state.detach() for state in states], mask)
        return outputs if with_states else type(outputs)(**{k: v for k, v in outputs.items() if k != "hidden_states"})


class SideClassifier(SideLayer):
    """The model's head, replaced by a linear layer on the side network's output.

    Args:
        base_layer: The head.
        side_output: Shared with the encoder.
        width: Width d of the side network's output.
        num_labels: Number of classes, or 1 for regression.
        container: Name under which the classifiers are kept, by adapter.
    """

    def __init__(
        self, base_layer: nn.Module, side_output: SideOutput, width: int, num_labels: int, container: str
    ) -> None:
        super().__init__(base_layer, side_output)
        self.width, self.num_labels, self.container = width, num_labels, container
        self.adapter_layer_names = (container,)
        setattr(self, container, nn.ModuleDict({}))

    @property
    def classifiers(self) -> nn.ModuleDict:
        """The classifiers by adapter."""
        classifiers: nn.ModuleDict = self._modules[self.container]  # type: ignore[assignment]
        return classifiers

    def update_layer(self, adapter_name: str, config: Any, device: torch.device | None = None) -> None:
        """Adds another adapter."""
        self.classifiers[adapter_name] = nn.Linear(self.width, self.num_labels, device=device)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits, shape (batch, labels); of a tagger (batch, tokens, labels)."""
        names = self.active_in(self.classifiers)
        output, self.side_output.tensor = self.side_output.tensor, None
        if not names or output is None:
            logits: torch.Tensor = self.base_layer(*args, **kwargs)
        else:
            logits = self.classifiers[names[0]](output)
        return logits


class SideTuner(AnatomyTuner):
    """Base of the tuners that put a network next to the encoder."""

    tuner_layer_cls = SideLayer

    def new_network(self, config: Any) -> nn.Module:
        """Builds the side network.

        It takes the hidden states, each of shape (batch, tokens, d), and a mask, and gives (batch, d), or in a tagger
        (batch, tokens, d).
        """
        raise NotImplementedError

    def pool_of(self, config: Any) -> str:
        """How the side network's states are pooled."""
        return NO_POOL if _head_of(self.model) == "Token" else str(config.pool)

    def default_targets(self, peft_config: Any, anatomy: Anatomy, layers: list[int]) -> str:
        """See `AnatomyTuner.default_targets`."""
        if _head_of(self.model) is None:
            raise ValueError(f"{type(self).__name__} brings a head: it needs a sequence classifier or a tagger")
        return f"{re.escape(anatomy.encoder)}|{re.escape(anatomy.head[-1])}"

    def create_layer(self, peft_config: Any, target: nn.Module, key: str) -> SideLayer:
        """See `AnatomyTuner.create_layer`."""
        side_output: SideOutput = self.__dict__.setdefault("_side_output", SideOutput())
        config: Any = self.model.config
        if key == self.anatomy.encoder:
            return SideEncoder(target, side_output, self.new_network, f"{self.prefix}network")
        return SideClassifier(target, side_output, config.hidden_size, config.num_labels, f"{self.prefix}classifier")


def _head_of(model: nn.Module) -> str | None:
    """What the head of a model of transformers classifies: `Sequence` or `Token`; None if it has no such head."""
    match = re.search("For(Sequence|Token)Classification$", type(model).__name__)
    return match[1] if match else None


class SideBlock(nn.Module):
    """A transformer block of width r, norms first, with a feed-forward network of 4r: 12 r^2 + 13 r parameters."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Shape (batch, tokens, r); `mask` is 1 for tokens, 0 for padding, shape (batch, tokens)."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        # A row that is all padding sees itself, as attention to no token at all would give NaN.
        visible = mask.bool() | ~mask.bool().any(dim=-1, keepdim=True)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible[:, None, None, :], dropout_p=dropout
        )
        x = x + nn.functional.dropout(self.output(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)
        update = self.feed_forward(self.feed_forward_norm(x))
        return x + nn.functional.dropout(update, self.dropout, self.training)


def pool(x: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """Mean over real tokens, or the first token, (batch, tokens, d) to (batch, d); or no pooling at all."""
    if how == NO_POOL:
        return x
    if how == "cls":
        return x[:, 0]
    weights = mask.to(x.dtype)[..., None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def fitting_heads(width: int, max_heads: int = 4) -> int:
    """The largest number of heads up to `max_heads` that divides the width."""
    return next(heads for heads in range(min(max_heads, width), 0, -1) if width % heads == 0)
