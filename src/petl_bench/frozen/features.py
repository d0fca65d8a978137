"""Features of the frozen layers for many rows: computed without padding, packed, padded when a batch needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from petl_bench.frozen.split import FrozenLayers
from petl_bench.training.batches import TokenRows, collate

# Most tokens of a forward pass: enough to keep the cores busy, few enough for their caches.
_CPU_TOKENS, _CUDA_TOKENS = 4096, 65536

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
    """Returns where each row's states begin, and where the last row's end; shape (rows + 1,)."""
    return np.arange(len(rows) + 1) if first_token else rows.offsets


def compute_features(
    frozen: FrozenLayers, rows: TokenRows, indices: np.ndarray, device: torch.device
) -> PackedFeatures:
    """Computes the features of some rows.

    Args:
        frozen: Computes them.
        rows: All rows.
        indices: The rows that are wanted.
        device: The model's device.

    Returns:
        Features in the order of `indices`, on the model's device.
    """
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
    """Computes the features of some rows and writes them into packed tensors.

    Rows of the same length share a forward pass, without padding. A row's states then do not depend on which other rows
    are computed with it (on the CPU in fp32 to the bit), so a cache changes no result.

    Args:
        frozen: Computes the features.
        rows: All rows.
        indices: The rows that are wanted.
        offsets: States of row `indices[i]` go to `offsets[i]:offsets[i + 1]`; shape (len(indices) + 1,).
        target: Returns the packed tensor to write to, given a layer and some of its states, shape (rows, tokens, d).
        device: The model's device.
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
    """Yields the positions of the rows of each forward pass: rows of one length, longest first."""
    most = _CPU_TOKENS if device.type == "cpu" else _CUDA_TOKENS
    for length in np.unique(lengths)[::-1]:
        positions = np.flatnonzero(lengths == length)
        step = max(1, most // int(length))
        for start in range(0, len(positions), step):
            yield positions[start : start + step]
