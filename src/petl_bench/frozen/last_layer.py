"""Runs the last layer for the first token alone, where the head reads no other: `train.last_layer=first_token`.

Keys and values are those of all tokens; queries, attention's output, norms and feed-forward network the first token's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from petl_bench.backbones.anatomy import Anatomy, classifier_of, is_within
from petl_bench.backbones.attention import CALLED_ROLES, AttendToAll
from petl_bench.errors import RequestError
from petl_bench.frozen.split import output_or_none, outputs_match, perturbed

# Packages whose modules do nothing of their own besides what is done here.
_PLAIN = ("torch.", "transformers.")

_PROBE_ROWS, _PROBE_TOKENS = 3, 8


def narrow_last_layer(model: nn.Module, anatomy: Anatomy) -> None:
    """Changes the last layer to give the first token's state alone, shape (batch, 1, d), after an equivalence check.

    The layer stays where it is, with its parts and their names; it gets another class, so that gradient checkpointing
    and hooks go on as before.

    Args:
        model: The adapted model, unwrapped; left in the mode that it is in.
        anatomy: Of its architecture.

    Raises:
        RequestError: If something reads, or may read, the last layer's states of other tokens.
    """
    classifier = classifier_of(model)
    obstacle = _obstacle(model, classifier, anatomy)
    if obstacle is None:
        layer = anatomy.get_layers(classifier)[-1]
        plain, narrowed = type(layer), _narrowed(type(layer), anatomy, classifier.config)
        if any(parameter.is_meta for parameter in model.parameters()):
            layer.__class__ = narrowed
        elif not _narrowing_matches(model, anatomy, layer, narrowed):
            layer.__class__ = plain
            obstacle = "the outputs depend on its states of other tokens"
    if obstacle is not None:
        raise RequestError(
            f"train.last_layer=first_token: the last layer cannot run for the first token alone, as {obstacle}. "
            "Use train.last_layer=all."
        )


def _obstacle(model: nn.Module, classifier: nn.Module, anatomy: Anatomy) -> str | None:
    """What prevents it, as far as can be seen without running the model; None if nothing does."""
    if anatomy.is_tagger:
        return "a tagger reads the states of all tokens"
    if anatomy.norm_first:
        return f"the norms of {anatomy.model_type} do not follow the sums"
    layer = anatomy.get_layers(classifier)[-1]
    if hasattr(layer.get_submodule(anatomy.self_attention), "disentangled_attention_bias"):
        return f"{anatomy.model_type}'s relative positions want as many queries as keys"
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            return f"{str(config.peft_type).rpartition('.')[2]} brings tokens of its own"
    if not isinstance(encoder := classifier.get_submodule(anatomy.encoder), PreTrainedModel):
        return f"{type(encoder).__name__} around the encoder may read the states of all tokens"
    called = _called(anatomy)
    for name, module in layer.named_modules():
        hooked = name and (module._forward_hooks or module._forward_pre_hooks)
        if not is_within(name, called) and (hooked or not type(module).__module__.startswith(_PLAIN)):
            where = f"its {name}" if name else "the layer itself"
            return f"{'a hook' if hooked else type(module).__name__} acts on {where}"
    return None


def _called(anatomy: Anatomy) -> list[str]:
    """Paths of the layer's parts that run; each of them must work token by token."""
    return [*(getattr(anatomy, role) for role in CALLED_ROLES), *anatomy.norms]


def _narrowed(kind: type[nn.Module], anatomy: Anatomy, config: Any) -> type[nn.Module]:
    """A class of layers like this one, under its name, that give the first token's state alone."""

    def forward(
        self: nn.Module, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        # Made anew with each call, as a copy of the layer must run its own parts.
        return AttendToAll(self, anatomy, config)(hidden_states[:, :1], hidden_states, mask)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _narrowing_matches(model: nn.Module, anatomy: Anatomy, layer: nn.Module, narrowed: type[nn.Module]) -> bool:
    """Narrows the layer, and says whether its parts' outputs and the model's stay, with padding and without."""
    was_training, device = model.training, next(model.parameters()).device
    tokens = min(_PROBE_TOKENS, anatomy.max_length(model.config))
    # Small ids are special tokens.
    ids = _PROBE_TOKENS + torch.arange(_PROBE_ROWS * tokens, device=device).view(_PROBE_ROWS, tokens)
    mask = torch.ones_like(ids)
    mask[1:, tokens // 2 :] = 0
    few = [{"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}]
    paths = [path for path in _called(anatomy) if path not in (anatomy.key, anatomy.value)]
    model.eval()
    try:
        with perturbed(model), torch.no_grad():
            with _noted([layer.get_submodule(path) for path in paths]) as calls:
                plain = [model(**inputs).logits for inputs in few]
            alone = [(output_or_none(lambda: part(x[:, :1])), output[:, :1]) for part, (x, output) in calls.items()]  # noqa: B023
            layer.__class__ = narrowed
            found = [output_or_none(lambda: model(**inputs).logits) for inputs in few]  # noqa: B023
    finally:
        model.train(was_training)
    return all(outputs_match(*pair) for pair in [*alone, *zip(found, plain, strict=True)])


@contextmanager
def _noted(parts: list[nn.Module]) -> Iterator[dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]]:
    """Input and output of each part's last call, in the order of the calls."""
    calls: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(part: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls[part] = (args[0], output)

    handles = [part.register_forward_hook(note) for part in parts]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
