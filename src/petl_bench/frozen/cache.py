"""The cache of features, in the process's memory or in memory-mapped files that are verified when they are opened."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from petl_bench.backbones.load import attention_implementation
from petl_bench.frozen.features import PackedFeatures, feature_offsets, fill_features
from petl_bench.frozen.split import FrozenLayers
from petl_bench.records.reading import check_hash, with_hash
from petl_bench.training.batches import TokenRows

_CHUNK = 2**24

# States older than this without a description were left by a killed process, as both are written in one go.
_ABANDONED_SECONDS = 60

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedStates:
    """One entry of the cache: a layer's states of all rows, and the time of the computation that produced them.

    Attributes:
        tensor: Shape (tokens, d).
        seconds: None if the entry was made by an older version of the program, which did not store them.
    """

    tensor: torch.Tensor
    seconds: float | None


class FeatureFile:
    """One entry of the cache on disk: `<key>.states`, and `<key>.json`, which describes it and is written last.

    Args:
        folder: Folder of the cache.
        key: Name of the entry.
        lock: Name of the lock under which it is written; None if it is only read.
    """

    def __init__(self, folder: Path, key: str, lock: str | None = None) -> None:
        self.key = key
        self.data, self.description = folder / f"{key}.states", folder / f"{key}.json"
        self.partial = folder / f"{lock or key}.{uuid.uuid4().hex}.partial"

    def create(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Returns a tensor in a new file. Its space is reserved now, as a full disk would kill the process later."""
        size = shape[0] * shape[1] * dtype.itemsize
        with self.partial.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                stream.truncate(size)
        return _mapped(self.partial, shape, dtype, writable=True)

    def finish(self, tensor: torch.Tensor, seconds: float | None) -> None:
        """Makes the entry valid. Call it once the tensor is filled, with the seconds that this took."""
        content = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "crc32": _crc(tensor),
            "seconds": seconds,
            "entry": self.key,
        }
        self.partial.replace(self.data)
        self.partial.write_text(json.dumps(with_hash(content)), encoding="utf-8")
        self.partial.replace(self.description)

    def read(self) -> CachedStates | None:
        """Returns the entry; None if there is none or it is damaged."""
        try:
            content = json.loads(self.description.read_text(encoding="utf-8"))
            check_hash(content)
            if content.get("entry", self.key) != self.key:
                raise ValueError("they are those of another entry")
            shape, dtype = tuple(content["shape"]), getattr(torch, content["dtype"])
            if self.data.stat().st_size != shape[0] * shape[1] * dtype.itemsize:
                raise ValueError("its size is wrong")
            tensor = _mapped(self.data, shape, dtype, writable=False)
            if _crc(tensor) != content["crc32"]:
                raise ValueError("its checksum is wrong")
            seconds = content.get("seconds")
            states = CachedStates(tensor, None if seconds is None else float(seconds))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            _log.warning("the cached features in %s are damaged and computed again (%s)", self.data, error)
            self.remove()
            return None
        with suppress(OSError):
            os.utime(self.description)
        return states

    def remove(self) -> None:
        """Deletes the entry. Processes that have mapped it can still read it."""
        for file in (self.description, self.data):
            with suppress(OSError):
                file.unlink()

    def discard(self) -> None:
        """Deletes the file that `create` made."""
        with suppress(OSError):
            self.partial.unlink()


def _mapped(file: Path, shape: tuple[int, int], dtype: torch.dtype, *, writable: bool) -> torch.Tensor:
    return torch.from_file(str(file), shared=writable, size=shape[0] * shape[1], dtype=dtype).view(shape)


def _crc(tensor: torch.Tensor) -> int:
    content = tensor.view(torch.uint8).flatten().numpy()
    # The same bytes represent other states in another shape or type.
    checksum = zlib.crc32(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    for start in range(0, len(content), _CHUNK):
        checksum = zlib.crc32(content[start : start + _CHUNK].data, checksum)
    return checksum


def remove_abandoned(folder: Path) -> None:
    """Deletes files that killed processes had begun to write: no process holds the lock that their names begin with."""
    for file in folder.glob("*.partial"):
        lock = FileLock(folder / f"{file.name.partition('.')[0]}.lock", blocking=False)
        with suppress(OSError, Timeout), lock:
            file.unlink()


def prune(folder: Path, budget: int, in_use: Collection[str]) -> None:
    """Deletes the least recently used entries until the others fit the budget, and states that killed processes left.

    Args:
        folder: Folder of the cache.
        budget: Size in bytes.
        in_use: Keys of entries that are not deleted.
    """
    entries = []
    for description in folder.glob("*.json"):
        entry = FeatureFile(folder, description.stem)
        with suppress(OSError):  # another process deletes too
            entries.append((description.stat().st_mtime, entry.data.stat().st_size, entry))
    whole = {entry.data for _, _, entry in entries}
    for file in folder.glob("*.states"):
        with suppress(OSError):
            if file not in whole and time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink()
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries, key=lambda item: item[0]):
        if total > budget and entry.key not in in_use:
            entry.remove()
            total -= size


CACHE_VERSION = 1

# Settings of the model's config that a layer's states do not depend on.
_NOT_IN_KEY = (
    *("_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version"),
    *("num_hidden_layers", "n_layers", "layer_types", "output_hidden_states", "output_attentions", "return_dict"),
    "use_cache",
)

# Number of tokens whose states are part of the key.
_PROBE_TOKENS = 64

_memory_entries: OrderedDict[str, CachedStates] = OrderedDict()


@dataclass(frozen=True)
class CachedFeatures:
    """Features of all rows from the cache.

    Attributes:
        features: What batches are made of.
        reused: Whether they were already in the cache.
        seconds: How long the original computation took, in this run or an earlier one; None if that is not known.
    """

    features: PackedFeatures
    reused: bool
    seconds: float | None


class FeatureCache:
    """Features of one model's frozen layers, in memory or on disk.

    Args:
        frozen: The layers that compute them.
        device: The model's device.
        precision: The run's precision.
        max_rows: The largest number of rows in a forward pass.

    Attributes:
        keys_in_use: Keys of the entries on disk that it returned.
    """

    def __init__(self, frozen: FrozenLayers, device: torch.device, precision: str, max_rows: int) -> None:
        self.frozen, self.device, self.max_rows = frozen, device, max_rows
        self._digests = _digests(frozen, device, precision)
        self.keys_in_use: set[str] = set()

    def in_memory(self, rows: TokenRows, budget: int) -> CachedFeatures:
        """Returns the features of all rows, kept in the process's memory.

        Args:
            rows: The rows.
            budget: Bytes that are kept for later runs of this process; the least recently used entries are dropped.
        """
        keys = _Keys(self._digests, self.frozen, rows)
        by_layer = keys.find(_memory_entries.get)
        reused = by_layer is not None
        if by_layer is None:

            def new(_layer: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
                _make_room(budget - shape[0] * shape[1] * dtype.itemsize)
                return torch.empty(shape, dtype=dtype)

            by_layer = self._compute(rows, new)
        for layer, states in by_layer.items():
            _memory_entries[keys.of(layer)] = states
            _memory_entries.move_to_end(keys.of(layer))
        _make_room(budget)
        return self._packed(rows, by_layer, reused=reused)

    def on_disk(self, rows: TokenRows, folder: Path) -> CachedFeatures:
        """Returns the features of all rows in memory-mapped files.

        If several processes ask at the same time, one computes and the others wait. Damaged files are computed again.

        Args:
            rows: The rows.
            folder: Folder of the cache.

        Raises:
            OSError: If the files cannot be written.
        """
        keys = _Keys(self._digests, self.frozen, rows)
        folder.mkdir(parents=True, exist_ok=True)
        # This frees their space before the new files need it.
        remove_abandoned(folder)
        lock = keys.of(self.frozen.split.depth)
        with FileLock(folder / f"{lock}.lock"):
            by_layer = keys.find(lambda key: FeatureFile(folder, key).read())
            reused = by_layer is not None
            if by_layer is None:
                files = {layer: FeatureFile(folder, keys.of(layer), lock) for layer in self.frozen.split.reads}
                try:
                    by_layer = self._compute(rows, lambda layer, shape, dtype: files[layer].create(shape, dtype))
                    for layer, file in files.items():
                        file.finish(by_layer[layer].tensor, by_layer[layer].seconds)
                except BaseException:
                    for file in files.values():
                        file.discard()
                    raise
            self.keys_in_use |= {keys.of(layer) for layer in by_layer}
        return self._packed(rows, by_layer, reused=reused)

    def _compute(self, rows: TokenRows, new: Any) -> dict[int, CachedStates]:
        """Computes the features of all rows into tensors that `new` creates, given layer, shape and type."""
        offsets = feature_offsets(rows, first_token=self.frozen.split.first_token)
        tensors: dict[int, torch.Tensor] = {}

        def target(layer: int, like: torch.Tensor) -> torch.Tensor:
            if layer not in tensors:
                tensors[layer] = new(layer, (int(offsets[-1]), like.shape[-1]), like.dtype)
            return tensors[layer]

        started = time.perf_counter()
        fill_features(self.frozen, rows, np.arange(len(rows)), offsets, target, self.device, self.max_rows)
        seconds = time.perf_counter() - started
        return {layer: CachedStates(tensor, seconds) for layer, tensor in tensors.items()}

    def _packed(self, rows: TokenRows, by_layer: dict[int, CachedStates], *, reused: bool) -> CachedFeatures:
        offsets = feature_offsets(rows, first_token=self.frozen.split.first_token)
        known = [states.seconds for states in by_layer.values() if states.seconds is not None]
        # One computation produces the states of all layers, so its seconds are not added up over them.
        seconds = max(known) if len(known) == len(by_layer) else None
        tensors = {layer: states.tensor for layer, states in by_layer.items()}
        return CachedFeatures(PackedFeatures(tensors, offsets), reused, seconds)


def _make_room(budget: int) -> None:
    while _memory_entries and sum(states.tensor.nbytes for states in _memory_entries.values()) > budget:
        _memory_entries.popitem(last=False)


def _digests(frozen: FrozenLayers, device: torch.device, precision: str) -> dict[int, str]:
    """Hashes what each layer's states depend on, apart from the rows.

    These are the weights and settings up to the layer, and the states of some tokens, which reveal all else that may
    differ, such as hooks of a method, the library's version or the processor's instructions.
    """
    settings = frozen.encoder.config
    common = [
        CACHE_VERSION,
        {name: value for name, value in settings.to_dict().items() if name not in _NOT_IN_KEY},
        attention_implementation(settings),
        [precision, device.type, torch.__version__],
    ]
    digest = hashlib.sha256(json.dumps(common, sort_keys=True, default=str).encode())
    kinds = getattr(settings, "layer_types", None) or []
    probe = torch.arange(_PROBE_TOKENS, device=device)[None] % settings.vocab_size
    states = frozen.states_of(
        {"input_ids": probe[:, : settings.max_position_embeddings // 2]}, range(frozen.split.depth + 1)
    )
    digests = {}
    for layer, modules in enumerate([frozen.foundation, *([module] for module in frozen.layers)]):
        for module in modules:
            _add_weights(digest, module)
        _add_tensor(digest, states[layer])
        digests[layer] = hashlib.sha256(f"{digest.hexdigest()} {kinds[:layer]}".encode()).hexdigest()
    return digests


class _Keys:
    """Keys of the cache entries of one model's frozen layers and some rows."""

    def __init__(self, digests: dict[int, str], frozen: FrozenLayers, rows: TokenRows) -> None:
        self._digests, self._split, self._offsets = digests, frozen.split, rows.offsets
        self._tokens = _tokens_digest(rows)

    def of(self, layer: int, *, first_token: bool | None = None) -> str:
        """Returns the key of a layer's states."""
        first_token = self._split.first_token if first_token is None else first_token
        key = hashlib.sha256(f"{self._digests[layer]} {self._tokens}".encode()).hexdigest()
        return key + ("-first" if first_token else "")

    def find(self, get: Callable[[str], CachedStates | None]) -> dict[int, CachedStates] | None:
        """Returns all features, or None if a layer is missing; first tokens may be taken from states of all tokens."""
        by_layer = {}
        for layer in self._split.reads:
            states = get(self.of(layer))
            if states is None and self._split.first_token:
                all_tokens = get(self.of(layer, first_token=False))
                first = torch.from_numpy(self._offsets[:-1])
                states = None if all_tokens is None else CachedStates(all_tokens.tensor[first], all_tokens.seconds)
            if states is None:
                return None
            by_layer[layer] = states
        return by_layer


def _tokens_digest(rows: TokenRows) -> str:
    digest = hashlib.sha256()
    for array in (rows.ids, rows.types, rows.offsets):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _add_weights(digest: Any, module: nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        _add_tensor(digest, tensor)


def _add_tensor(digest: Any, tensor: torch.Tensor) -> None:
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
