"""Keeps the trunk's states: in the process's memory, or in memory-mapped files that other runs share.

An entry is one layer's states of one set of rows. Its key is a hash of all that they follow from: weights up to that
layer, the architecture's settings, token ids, precision, device and torch's version. So seeds, learning rates and other
methods find it, and a stale one is never found.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from petl_bench.training.batching import TokenRows
from petl_bench.training.state_file import StateFile, prune
from petl_bench.training.trunk import Trunk
from petl_bench.training.trunk_states import FlatStates, fill_states, state_offsets

CACHE_VERSION = 1
# Of the model's config: what says nothing of the states of a layer.
_NOT_IN_KEY = (
    *("_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version"),
    *("num_hidden_layers", "n_layers", "layer_types", "output_hidden_states", "output_attentions", "return_dict"),
    "use_cache",
)

_kept: OrderedDict[str, torch.Tensor] = OrderedDict()


def memory_states(
    trunk: Trunk, rows: TokenRows, device: torch.device, precision: str, budget: int
) -> tuple[FlatStates, bool]:
    """States of all rows in memory, and whether they were there already.

    Args:
        trunk: Computes them.
        rows: The rows.
        device: Where the model is.
        precision: The run's.
        budget: Bytes that are kept for later runs of this process; the entries used longest ago make room.
    """
    keys = _Keys(trunk, rows, device, precision)
    found = keys.find(_kept.get)
    reused = found is not None
    if found is None:
        found = {}
        _fill(trunk, rows, device, found, lambda _layer, shape, dtype: torch.empty(shape, dtype=dtype))
    for layer, tensor in found.items():
        _kept[keys.of(layer)] = tensor
        _kept.move_to_end(keys.of(layer))
    while sum(tensor.nbytes for tensor in _kept.values()) > budget:
        _kept.popitem(last=False)
    return FlatStates(found, state_offsets(rows, first_token=trunk.cut.first_token)), reused


def disk_states(
    trunk: Trunk, rows: TokenRows, device: torch.device, precision: str, folder: Path, budget: int
) -> tuple[FlatStates, bool]:
    """States of all rows in memory-mapped files, and whether they were there already.

    Several processes may ask at once: one computes, the others wait for it. Broken files are made anew.

    Args:
        trunk: Computes them.
        rows: The rows.
        device: Where the model is.
        precision: The run's.
        folder: Of the cache.
        budget: Bytes that the folder may hold; the entries used longest ago make room.

    Raises:
        OSError: where the files cannot be written.
    """
    keys = _Keys(trunk, rows, device, precision)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{keys.of(trunk.cut.depth)}.lock"):
        found = keys.find(lambda key: StateFile(folder, key).read())
        reused = found is not None
        if found is None:
            found = {}
            entries = {layer: StateFile(folder, keys.of(layer)) for layer in trunk.cut.reads}
            try:
                _fill(trunk, rows, device, found, lambda layer, shape, dtype: entries[layer].create(shape, dtype))
                for layer, entry in entries.items():
                    entry.finish(found[layer])
            except BaseException:
                for entry in entries.values():
                    entry.discard()
                raise
        prune(folder, budget, {keys.of(layer) for layer in found})
    return FlatStates(found, state_offsets(rows, first_token=trunk.cut.first_token)), reused


def _fill(trunk: Trunk, rows: TokenRows, device: torch.device, found: dict[int, torch.Tensor], new: Any) -> None:
    """Computes the states of all rows into tensors that `new` makes, given layer, shape and type."""
    offsets = state_offsets(rows, first_token=trunk.cut.first_token)

    def target(layer: int, like: torch.Tensor) -> torch.Tensor:
        if layer not in found:
            found[layer] = new(layer, (int(offsets[-1]), like.shape[-1]), like.dtype)
        return found[layer]

    fill_states(trunk, rows, np.arange(len(rows)), offsets, target, device)


class _Keys:
    """Keys of the entries that a trunk and some rows make."""

    def __init__(self, trunk: Trunk, rows: TokenRows, device: torch.device, precision: str) -> None:
        self._cut, self._offsets = trunk.cut, rows.offsets
        settings = trunk.encoder.config
        common = [
            CACHE_VERSION,
            {name: value for name, value in settings.to_dict().items() if name not in _NOT_IN_KEY},
            settings._attn_implementation,
            [precision, device.type, torch.__version__],
            _tokens_digest(rows),
        ]
        digest = hashlib.sha256(json.dumps(common, sort_keys=True, default=str).encode())
        kinds = getattr(settings, "layer_types", None) or []
        self._digests: dict[int, str] = {}
        for layer, modules in enumerate([trunk.foundation, *([layer] for layer in trunk.layers)]):
            for module in modules:
                _add_weights(digest, module)
            self._digests[layer] = hashlib.sha256(f"{digest.hexdigest()} {kinds[:layer]}".encode()).hexdigest()

    def of(self, layer: int, *, first_token: bool | None = None) -> str:
        """The key of a layer's states."""
        first_token = self._cut.first_token if first_token is None else first_token
        return self._digests[layer] + ("-first" if first_token else "")

    def find(self, get: Callable[[str], torch.Tensor | None]) -> dict[int, torch.Tensor] | None:
        """All states that are read, or None where one is missing; the first token's may come from all tokens'."""
        found = {}
        for layer in self._cut.reads:
            tensor = get(self.of(layer))
            if tensor is None and self._cut.first_token:
                whole = get(self.of(layer, first_token=False))
                tensor = None if whole is None else whole[torch.from_numpy(self._offsets[:-1])]
            if tensor is None:
                return None
            found[layer] = tensor
        return found


def _tokens_digest(rows: TokenRows) -> str:
    digest = hashlib.sha256()
    for array in (rows.ids, rows.types, rows.offsets):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _add_weights(digest: Any, module: nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
