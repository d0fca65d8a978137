"""The trunk's states of many rows: computed without padding, kept flat, padded when a batch needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from petl_bench.frozen.split import FrozenLayers
from petl_bench.training.batches import TokenRows, collate

# Tokens a pass: enough for the cores to be busy, few enough for the caches.
_CPU_TOKENS, _CUDA_TOKENS = 4096, 65536

# With fewer tokens matrix products take other paths, whose sums differ in their last bits.
_FEWEST_TOKENS = 64


@dataclass(frozen=True)
class PackedFeatures:
    """States of rows, one row after the other.

    Attributes:
        tensors: By layer; each of shape (tokens, d).
        offsets: Row i is `tensor[offsets[i]:offsets[i + 1]]`; shape (rows + 1,).
    """

    tensors: dict[int, torch.Tensor]
    offsets: np.ndarray

    def padded(self, indices: np.ndarray) -> dict[int, torch.Tensor]:
        """States of these rows with zeros behind the shorter ones; by layer, each of shape (rows, longest, d)."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        return {layer: _padded(flat, starts, lengths) for layer, flat in self.tensors.items()}


def _padded(flat: torch.Tensor, starts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    longest = int(lengths.max())
    if longest == 1:
        return flat[torch.from_numpy(starts)][:, None]
    new = flat.new_empty if (lengths == longest).all() else flat.new_zeros
    batch = new((len(starts), longest, flat.shape[1]))
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        batch[row, :length] = flat[start : start + length]
    return batch


def feature_offsets(rows: TokenRows, *, first_token: bool) -> np.ndarray:
    """Where each row's states begin, and where the last one's end."""
    return np.arange(len(rows) + 1) if first_token else rows.offsets


def compute_features(
    frozen: FrozenLayers, rows: TokenRows, indices: np.ndarray, device: torch.device
) -> PackedFeatures:
    """States of these rows, in this order, where the model is."""
    lengths = np.ones(len(indices), dtype=np.int64) if frozen.split.first_token else rows.lengths[indices]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tensors: dict[int, torch.Tensor] = {}

    def new(layer: int, like: torch.Tensor) -> torch.Tensor:
        return tensors.setdefault(layer, like.new_empty((int(offsets[-1]), like.shape[-1])))

    fill_features(frozen, rows, indices, offsets, new, device)
    return PackedFeatures(tensors, offsets)


def fill_features(
    frozen: FrozenLayers,
    rows: TokenRows,
    indices: np.ndarray,
    offsets: np.ndarray,
    target: Callable[[int, torch.Tensor], torch.Tensor],
    device: torch.device,
) -> None:
    """Computes states and writes them where they belong.

    Rows of one length share a pass, without padding. A row's states then do not depend on which others are computed
    with it (on the CPU in fp32: to the bit), so a cache changes no result.

    Args:
        frozen: Computes them.
        rows: All rows.
        indices: Those wanted.
        offsets: Row `indices[i]` goes to `offsets[i]:offsets[i + 1]`.
        target: Gives, for a layer and some of its states, the flat tensor to write to.
        device: Where the model is.
    """
    for positions in _equal_lengths(rows.lengths[indices], device):
        group = indices[positions]
        short = len(group) * int(rows.lengths[group[0]]) < _FEWEST_TOKENS
        needed = np.resize(group, -(-_FEWEST_TOKENS // int(rows.lengths[group[0]]))) if short else group
        states = frozen.states(collate(rows, needed).to(device).inputs)
        for layer, state in states.items():
            flat = target(layer, state)
            for position, values in zip(positions.tolist(), state, strict=False):
                flat[offsets[position] : offsets[position + 1]] = values


def _equal_lengths(lengths: np.ndarray, device: torch.device) -> Iterator[np.ndarray]:
    """Positions of rows of one length each, longest first, a pass at a time."""
    most = _CPU_TOKENS if device.type == "cpu" else _CUDA_TOKENS
    for length in np.unique(lengths)[::-1]:
        positions = np.flatnonzero(lengths == length)
        step = max(1, most // int(length))
        for start in range(0, len(positions), step):
            yield positions[start : start + step]
