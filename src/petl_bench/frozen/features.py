"""Computes states in fewer passes or for fewer tokens than a plain model would.

Features of the frozen layers are computed once for many rows, without padding, packed, and padded when a batch needs
them. With `train.last_layer=first_token` the last layer runs for the first token alone, if the head reads no other:
keys and values are computed for all tokens, but queries, attention's output, norms and the feed-forward network only
for the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from petl_bench.backbones.anatomy import Anatomy, classifier_of, is_within
from petl_bench.backbones.attention import CALLED_ROLES, AttendToAll
from petl_bench.errors import RequestError
from petl_bench.frozen.split import FrozenLayers, output_or_none, outputs_match, perturbed
from petl_bench.training.batches import TokenRows, collate

# The largest number of tokens in a forward pass on the CPU: enough to keep the cores busy, few enough for their caches.
_CPU_TOKENS = 4096

# With fewer tokens, matrix products use other kernels, whose results differ in their last bits.
_FEWEST_TOKENS = 64


@dataclass(frozen=True)
class PackedFeatures:
    """Hidden states of many rows, one row after the other without padding.

    Attributes:
        tensors: By layer; each of shape (tokens, d).
        offsets: Row i is `tensor[offsets[i]:offsets[i + 1]]`; shape (rows + 1,).
    """

    tensors: dict[int, torch.Tensor]
    offsets: np.ndarray

    def padded(self, indices: np.ndarray) -> dict[int, torch.Tensor]:
        """Returns the states of these rows, padded with zeros, by layer; each of shape (rows, longest, d)."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        pad = _copied if next(iter(self.tensors.values())).device.type == "cpu" else _gathered
        return {layer: pad(packed, starts, lengths) for layer, packed in self.tensors.items()}


def _copied(packed: torch.Tensor, starts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Pads row by row, which is the fastest way on the CPU, as a row is one block of memory."""
    longest = int(lengths.max())
    if longest == 1:
        return packed[torch.from_numpy(starts)][:, None]
    new = packed.new_empty if (lengths == longest).all() else packed.new_zeros
    batch = new((len(starts), longest, packed.shape[1]))
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        batch[row, :length] = packed[start : start + length]
    return batch


def _gathered(packed: torch.Tensor, starts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Pads all rows with two kernels, as launching one for each row takes longer."""
    positions = np.arange(int(lengths.max()))
    is_padding = torch.from_numpy(positions >= lengths[:, None]).to(packed.device)
    # In place of padding the row's last token is read, and is overwritten.
    index = torch.from_numpy(starts[:, None] + np.minimum(positions, lengths[:, None] - 1)).to(packed.device)
    return packed[index].masked_fill_(is_padding[..., None], 0)


def feature_offsets(rows: TokenRows, *, first_token: bool) -> np.ndarray:
    """Returns where each row's states begin, and where the last row's end; shape (rows + 1,)."""
    return np.arange(len(rows) + 1) if first_token else rows.offsets


def compute_features(
    frozen: FrozenLayers, rows: TokenRows, indices: np.ndarray, device: torch.device, max_rows: int | None = None
) -> PackedFeatures:
    """Computes the features of some rows.

    Args:
        frozen: The layers that compute them.
        rows: All rows.
        indices: The rows whose features are computed.
        device: The model's device.
        max_rows: The largest number of rows in a forward pass; None for no limit.

    Returns:
        Features in the order of `indices`, on the model's device.
    """
    lengths = np.ones(len(indices), dtype=np.int64) if frozen.split.first_token else rows.lengths[indices]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tensors: dict[int, torch.Tensor] = {}

    def new(layer: int, like: torch.Tensor) -> torch.Tensor:
        return tensors.setdefault(layer, like.new_empty((int(offsets[-1]), like.shape[-1])))

    fill_features(frozen, rows, indices, offsets, new, device, max_rows)
    return PackedFeatures(tensors, offsets)


def fill_features(
    frozen: FrozenLayers,
    rows: TokenRows,
    indices: np.ndarray,
    offsets: np.ndarray,
    target: Callable[[int, torch.Tensor], torch.Tensor],
    device: torch.device,
    max_rows: int | None = None,
) -> None:
    """Computes the features of some rows and writes them into packed tensors.

    Rows of the same length share a forward pass, without padding. A row's states then do not depend on which other rows
    are computed with it (bit for bit on the CPU in fp32), so a cache changes no result.

    Args:
        frozen: The layers that compute the features.
        rows: All rows.
        indices: The rows whose features are computed.
        offsets: States of row `indices[i]` go to `offsets[i]:offsets[i + 1]`; shape (len(indices) + 1,).
        target: Returns the packed tensor to write to, given a layer and some of its states, shape (rows, tokens, d).
        device: The model's device.
        max_rows: The largest number of rows in a forward pass; None for no limit.
    """
    for positions in _equal_lengths(rows.lengths[indices], device, max_rows):
        group, length = indices[positions], int(rows.lengths[indices[positions[0]]])
        short = len(group) * length < _FEWEST_TOKENS
        needed = np.resize(group, -(-_FEWEST_TOKENS // length)) if short else group
        states = frozen.states(collate(rows, needed).to(device).inputs)
        for layer, state in states.items():
            packed = target(layer, state)
            places = torch.from_numpy(offsets[positions][:, None] + np.arange(state.shape[1]))
            # One copy from the device for all rows of the pass.
            packed[places.to(packed.device)] = state[: len(group)].to(packed.device)


def _equal_lengths(lengths: np.ndarray, device: torch.device, max_rows: int | None) -> Iterator[np.ndarray]:
    """Yields the positions of the rows of each forward pass: rows of one length, longest first."""
    for length in np.unique(lengths)[::-1]:
        positions = np.flatnonzero(lengths == length)
        step = len(positions) if max_rows is None else max_rows
        if device.type == "cpu":
            step = min(step, max(1, _CPU_TOKENS // int(length)))
        for start in range(0, len(positions), step):
            yield positions[start : start + step]


# Packages whose modules do nothing beyond what the narrowed layer does.
_PLAIN = ("torch.", "transformers.")

_PROBE_ROWS, _PROBE_TOKENS = 3, 8


def narrow_last_layer(model: nn.Module, anatomy: Anatomy) -> None:
    """Makes the last layer return only the first token's state, shape (batch, 1, d), after an equivalence check.

    The layer keeps its place, its parts and their names; only its class changes, so that gradient checkpointing and
    hooks work as before.

    Args:
        model: The adapted model, unwrapped; it stays in its current mode.
        anatomy: The anatomy of its architecture.

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
    """What prevents the narrowing, as far as can be seen without running the model; None if nothing does."""
    if anatomy.is_tagger:
        return "a tagger reads the states of all tokens"
    if anatomy.norm_first:
        return f"the norms of {anatomy.model_type} do not follow the sums"
    layer = anatomy.get_layers(classifier)[-1]
    if anatomy.relative_positions:
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
    """Paths of the layer's parts that are called; each of them must work token by token."""
    return [*(getattr(anatomy, role) for role in CALLED_ROLES), *anatomy.norms]


def _narrowed(kind: type[nn.Module], anatomy: Anatomy, config: Any) -> type[nn.Module]:
    """A subclass with the same name, whose layers return only the first token's state."""

    def forward(
        self: nn.Module, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        """The first token's state, shape (batch, 1, d)."""
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        # Created in each call, as a copy of the layer must run its own parts.
        return AttendToAll(self, anatomy, config)(hidden_states[:, :1], hidden_states, mask)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _narrowing_matches(model: nn.Module, anatomy: Anatomy, layer: nn.Module, narrowed: type[nn.Module]) -> bool:
    """Narrows the layer; returns whether its parts' and the model's outputs are unchanged, with and without padding."""
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
                logits = [model(**inputs).logits for inputs in few]
            alone = [(output_or_none(lambda: part(x[:, :1])), output[:, :1]) for part, (x, output) in calls.items()]  # noqa: B023
            layer.__class__ = narrowed
            narrowed_logits = [output_or_none(lambda: model(**inputs).logits) for inputs in few]  # noqa: B023
    finally:
        model.train(was_training)
    return all(outputs_match(*pair) for pair in [*alone, *zip(narrowed_logits, logits, strict=True)])


@contextmanager
def _noted(parts: list[nn.Module]) -> Iterator[dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]]:
    """Records the input and output of each part's last call, in the order of the calls."""
    calls: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(part: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls[part] = (args[0], output)

    handles = [part.register_forward_hook(note) for part in parts]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
