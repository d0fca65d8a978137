"""Batches of cached features, and the choice of where the features of all rows are kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import nn

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.errors import RequestError, parse_bytes
from petl_bench.frozen.cache import FeatureCache, prune
from petl_bench.frozen.features import PackedFeatures, compute_features, feature_offsets
from petl_bench.frozen.split import FrozenLayers, find_split, first_tokens
from petl_bench.measure import available_memory_bytes
from petl_bench.process import cache_dir
from petl_bench.records.schema import CACHE_PLACES, FrozenFeatures
from petl_bench.training import TrainConfig
from petl_bench.training.batches import Batch, BatchSource, TokenRows, collate
from petl_bench.training.loop import num_training_steps, steps_per_epoch

if TYPE_CHECKING:
    from accelerate import Accelerator


class FeatureBatchSource(BatchSource):
    """Makes batches of features of the frozen layers, and runs the layers above the split point on them.

    Args:
        rows: The rows that batches are made of.
        device: The model's device.
        frozen: The model's frozen layers.
        cached: Features of all rows; None to compute them with every batch.
    """

    def __init__(
        self, rows: TokenRows, device: torch.device, frozen: FrozenLayers, cached: PackedFeatures | None
    ) -> None:
        super().__init__(rows, device)
        self.frozen, self.cached = frozen, cached

    def batch(self, indices: np.ndarray) -> Batch:
        """See `BatchSource.batch`."""
        batch = collate(self.rows, indices)
        if self.frozen.split.first_token:
            batch.inputs, batch.num_padded_tokens = first_tokens(batch.inputs), batch.num_tokens
        if self.cached is not None:
            batch.states = self.cached.padded(indices)
        else:
            computed = compute_features(self.frozen, self.rows, indices, self.device)
            batch.states = computed.padded(np.arange(len(indices)))
        return batch.to(self.device)

    def forward(self, model: nn.Module, batch: Batch, labels: torch.Tensor | None = None) -> Any:
        """See `BatchSource.forward`."""
        assert batch.states is not None
        with self.frozen.given(batch.states):
            return super().forward(model, batch, labels)


_FOLDER = "frozen"

# Moving one layer's states of a batch from the host to a CUDA device takes as long as computing this many layers
# (BERT-base in bf16 on an H200, batches of 32 rows of 64 to 128 tokens; docs/performance.md).
_LAYERS_PER_STATE = 2.5

_log = logging.getLogger(__name__)


@dataclass
class BatchSources:
    """Batch sources by split, and what the record says of the frozen layers.

    Attributes:
        by_split: Sources of features, or of token ids if no layer is frozen.
        frozen: None if no layer is frozen.
        features_seconds: How long the original computation of the cached features took, in this run or an earlier one;
            None if nothing is cached, or if that is not known.
        cache_seconds: Time that this run took to find, read and write them, without their computation.
    """

    by_split: dict[str, BatchSource]
    frozen: FrozenFeatures | None = None
    features_seconds: float | None = None
    cache_seconds: float | None = None


def open_batch_sources(
    model: nn.Module, anatomy: Anatomy, splits: Mapping[str, TokenRows], train: TrainConfig, accelerator: Accelerator
) -> BatchSources:
    """Finds out which layers of a model are frozen, computes their features, and makes the batch sources of all splits.

    Args:
        model: The adapted model on its device, unwrapped.
        anatomy: Module paths of its architecture.
        splits: Rows by split, including `train`. Splits may share rows.
        train: Settings of the training, which say where features are kept.
        accelerator: The process's device and precision.

    Returns:
        Sources of features, or of token ids if no layer is frozen.

    Raises:
        RequestError: If `train.cache=device` asks for a CUDA device, and there is none.
    """
    device = accelerator.device
    rows = splits["train"]
    split = find_split(model, anatomy, collate(rows, _one_length(rows)).to(device).inputs, accelerator.autocast)
    if split is None:
        return BatchSources({name: BatchSource(rows, device) for name, rows in splits.items()})
    frozen = FrozenLayers(model, anatomy, split, accelerator.autocast)
    started = time.perf_counter()
    store = _FeatureStore(frozen, splits, train, device)
    features = store.features()
    cache_seconds = time.perf_counter() - started - store.computed_seconds if features else None
    sources: dict[str, BatchSource] = {
        name: FeatureBatchSource(rows, device, frozen, features.get(id(rows))) for name, rows in splits.items()
    }
    described = FrozenFeatures(
        layers=split.depth,
        states=len(split.reads),
        first_token_only=split.first_token,
        cache=store.place,
        bytes=sum(tensor.nbytes for packed in features.values() for tensor in packed.tensors.values()),
        reused=store.reused,
    )
    _log_features(described, store.features_seconds)
    return BatchSources(sources, described, store.features_seconds, cache_seconds)


class _FeatureStore:
    """Chooses where the features of all splits are kept, one of `CACHE_PLACES`, and gets them from there."""

    def __init__(
        self, frozen: FrozenLayers, splits: Mapping[str, TokenRows], train: TrainConfig, device: torch.device
    ) -> None:
        self.frozen, self.train, self.device = frozen, train, device
        self.rows = {id(rows): rows for rows in splits.values()}
        self.memory = parse_bytes("train.cache_memory", train.cache_memory)
        self.disk = parse_bytes("train.cache_disk", train.cache_disk)
        self.size = sum(self._bytes(rows) for rows in self.rows.values())
        self.place = self._choose(splits)
        self.reused = False
        self.features_seconds: float | None = None
        self.computed_seconds = 0.0

    def features(self) -> dict[int, PackedFeatures]:
        """Returns features by the `id` of the rows; empty if none are kept."""
        if self.place == "off":
            return {}
        if self.place == "device":
            return self._on_device()
        cache = FeatureCache(self.frozen, self.device, self.train.precision, self.train.eval_batch_size)
        folder = cache_dir() / _FOLDER
        try:
            if self.place == "memory":
                cached = {key: cache.in_memory(rows, self.memory) for key, rows in self.rows.items()}
            else:
                cached = {key: cache.on_disk(rows, folder) for key, rows in self.rows.items()}
                prune(folder, self.disk, cache.keys_in_use)
        except OSError as error:
            _log.warning(
                "the features of the frozen layers cannot be kept in %s (%s): they are computed with every batch",
                *(folder, error),
            )
            self.place = "off"
            return {}
        self.reused = all(entry.reused for entry in cached.values())
        known = [entry.seconds for entry in cached.values() if entry.seconds is not None]
        self.features_seconds = sum(known) if len(known) == len(cached) else None
        self.computed_seconds = sum(entry.seconds or 0.0 for entry in cached.values() if not entry.reused)
        return {key: entry.features for key, entry in cached.items()}

    def _on_device(self) -> dict[int, PackedFeatures]:
        """Computes features that stay on the device until the run ends, as other runs need the memory."""
        started = time.perf_counter()
        features = {
            key: compute_features(self.frozen, rows, np.arange(len(rows)), self.device, self.train.eval_batch_size)
            for key, rows in self.rows.items()
        }
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.features_seconds = self.computed_seconds = time.perf_counter() - started
        return features

    def _bytes(self, rows: TokenRows) -> int:
        tokens = int(feature_offsets(rows, first_token=self.frozen.split.first_token)[-1])
        return tokens * self.frozen.encoder.config.hidden_size * torch.float32.itemsize * len(self.frozen.split.reads)

    def _choose(self, splits: Mapping[str, TokenRows]) -> str:
        on_cuda = self.device.type == "cuda"
        if self.train.cache == "device" and not on_cuda:
            raise RequestError("train.cache=device keeps features on a CUDA device: use train.cache=memory on a CPU.")
        if self.train.cache not in ("auto", "shared"):
            return self.train.cache
        is_shared = self.train.cache == "shared" and not on_cuda
        if not is_shared and _rows_seen(splits, self.train) <= sum(map(len, self.rows.values())):
            # The cache would save nothing.
            return "off"
        if on_cuda and self.size <= min(self.memory, _free_device_bytes() // 2):
            return "device"
        if on_cuda and _LAYERS_PER_STATE * len(self.frozen.split.reads) > self.frozen.split.depth:
            _log.info(
                "the features of the frozen layers (%.1f GiB) are too many to move to the device", self.size / 2**30
            )
            return "off"
        if self.size <= min(self.memory, available_memory_bytes() // 2):
            return "memory"
        if self.size <= min(self.disk, _free_bytes()):
            return "disk"
        _log.info("the features of the frozen layers (%.1f GiB) fit neither memory nor disk", self.size / 2**30)
        return "off"


def _rows_seen(splits: Mapping[str, TokenRows], train: TrainConfig) -> int:
    """The number of rows that are computed in training and its evaluations, including repetitions."""
    num_train = len(splits["train"])
    steps = num_training_steps(num_train, train)
    of_an_epoch = steps_per_epoch(num_train, train)
    epochs, rest = divmod(steps, of_an_epoch)
    evaluations = math.ceil(steps / (train.evaluate_every or of_an_epoch))
    # Out-of-distribution rows are detected in a pass over every split at the end.
    at_the_end = sum(map(len, splits.values())) if "ood" in splits else 0
    return epochs * num_train + rest * train.batch_size + evaluations * len(splits.get("selection", ())) + at_the_end


def _free_device_bytes() -> int:
    free, _total = torch.cuda.mem_get_info()
    return int(free) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _free_bytes() -> int:
    folder = cache_dir()
    while not folder.exists():
        folder = folder.parent
    return psutil.disk_usage(str(folder)).free


def _one_length(rows: TokenRows, most: int = 4) -> np.ndarray:
    """A few rows of the same length, so that none is padded; if possible, of more than one token."""
    several = rows.lengths[rows.lengths > 1]
    middle = np.sort(several if len(several) else rows.lengths)[max(len(several), 1) // 2]
    return np.flatnonzero(rows.lengths == middle)[:most]


def _log_features(frozen: FrozenFeatures, seconds: float | None) -> None:
    place = CACHE_PLACES[frozen.cache]
    what = "the first token's state" if frozen.first_token_only else f"{frozen.states} states a token"
    origin = "found, computed" if frozen.reused else "computed"
    took = "in an unknown time" if seconds is None else f"in {seconds:.1f} s"
    size = "" if frozen.cache == "off" else f" ({frozen.bytes / 2**20:,.0f} MiB, {origin} {took})"
    _log.info("layers 1..%d are frozen and run without dropout: %s, %s%s", frozen.layers, what, place, size)
