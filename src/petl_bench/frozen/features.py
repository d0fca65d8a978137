"""Features of the frozen layers for many rows: computed without padding, packed, padded when a batch needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from petl_bench.frozen.split import FrozenLayers
from petl_bench.training.batches import TokenRows, collate

# Most tokens of a forward pass on the CPU: enough to keep the cores busy, few enough for their caches.
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
        padded = _copied if next(iter(self.tensors.values())).device.type == "cpu" else _gathered
        return {layer: padded(flat, starts, lengths) for layer, flat in self.tensors.items()}


def _copied(flat: torch.Tensor, starts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Pads row by row: on the CPU the fastest way, as a row is one block of memory."""
    longest = int(lengths.max())
    if longest == 1:
        return flat[torch.from_numpy(starts)][:, None]
    new = flat.new_empty if (lengths == longest).all() else flat.new_zeros
    batch = new((len(starts), longest, flat.shape[1]))
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        batch[row, :length] = flat[start : start + length]
    return batch


def _gathered(flat: torch.Tensor, starts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Pads all rows with two kernels, as launching one a row takes longer."""
    positions = np.arange(int(lengths.max()))
    is_padding = torch.from_numpy(positions >= lengths[:, None]).to(flat.device)
    # What is read in the place of padding is the row's last token, and is overwritten.
    index = torch.from_numpy(starts[:, None] + np.minimum(positions, lengths[:, None] - 1)).to(flat.device)
    return flat[index].masked_fill_(is_padding[..., None], 0)


def feature_offsets(rows: TokenRows, *, first_token: bool) -> np.ndarray:
    """Returns where each row's states begin, and where the last row's end; shape (rows + 1,)."""
    return np.arange(len(rows) + 1) if first_token else rows.offsets


def compute_features(
    frozen: FrozenLayers, rows: TokenRows, indices: np.ndarray, device: torch.device, max_rows: int | None = None
) -> PackedFeatures:
    """Computes the features of some rows.

    Args:
        frozen: Computes them.
        rows: All rows.
        indices: The rows that are wanted.
        device: The model's device.
        max_rows: Most rows of a forward pass; None for no limit.

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
    are computed with it (on the CPU in fp32 to the bit), so a cache changes no result.

    Args:
        frozen: Computes the features.
        rows: All rows.
        indices: The rows that are wanted.
        offsets: States of row `indices[i]` go to `offsets[i]:offsets[i + 1]`; shape (len(indices) + 1,).
        target: Returns the packed tensor to write to, given a layer and some of its states, shape (rows, tokens, d).
        device: The model's device.
        max_rows: Most rows of a forward pass; None for no limit.
    """
    for positions in _equal_lengths(rows.lengths[indices], device, max_rows):
        group, length = indices[positions], int(rows.lengths[indices[positions[0]]])
        short = len(group) * length < _FEWEST_TOKENS
        needed = np.resize(group, -(-_FEWEST_TOKENS // length)) if short else group
        states = frozen.states(collate(rows, needed).to(device).inputs)
        for layer, state in states.items():
            flat = target(layer, state)
            places = torch.from_numpy(offsets[positions][:, None] + np.arange(state.shape[1]))
            # One copy from the device for all rows of the pass.
            flat[places.to(flat.device)] = state[: len(group)].to(flat.device)


def _equal_lengths(lengths: np.ndarray, device: torch.device, max_rows: int | None) -> Iterator[np.ndarray]:
    """Yields the positions of the rows of each forward pass: rows of one length, longest first."""
    for length in np.unique(lengths)[::-1]:
        positions = np.flatnonzero(lengths == length)
        step = len(positions) if max_rows is None else max_rows
        if device.type == "cpu":
            step = min(step, max(1, _CPU_TOKENS // int(length)))
        for start in range(0, len(positions), step):
            yield positions[start : start + step]
