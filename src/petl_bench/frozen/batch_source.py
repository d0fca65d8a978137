"""Batches of cached features: whether a model's frozen layers can be split off, and where their features are kept."""

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
from petl_bench.errors import parse_bytes
from petl_bench.frozen.cache import FeatureCache
from petl_bench.frozen.features import PackedFeatures, compute_features, feature_offsets
from petl_bench.frozen.split import FrozenLayers, find_split, first_tokens
from petl_bench.process import cache_dir
from petl_bench.records.schema import FrozenFeatures
from petl_bench.training.batches import Batch, BatchSource, TokenRows, collate
from petl_bench.training.config import TrainConfig
from petl_bench.training.loop import num_training_steps, steps_per_epoch

if TYPE_CHECKING:
    from accelerate import Accelerator


class FeatureBatchSource(BatchSource):
    """Feeds a model the states of its trunk: it computes what is above them.

    Args:
        rows: The rows.
        device: Where the model is.
        trunk: Of the model.
        cached: The states of all rows; None: each batch's are computed when it comes.
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

_log = logging.getLogger(__name__)


@dataclass
class BatchSources:
    """Feeds by split, and what the record says of the trunk; None where there is none."""

    by_split: dict[str, BatchSource]
    frozen: FrozenFeatures | None = None
    seconds: float | None = None


def open_batch_sources(
    model: nn.Module, anatomy: Anatomy, splits: Mapping[str, TokenRows], train: TrainConfig, accelerator: Accelerator
) -> BatchSources:
    """Feeds for a model that is about to be trained; where layers are frozen, their states are computed now.

    Args:
        model: The adapted model on its device, unwrapped.
        anatomy: Of its architecture.
        splits: Rows by split; `train` among them. Splits may share rows.
        train: Says where states are kept.
        accelerator: The process's place among devices and processes.
    """
    device = accelerator.device
    rows = splits["train"]
    split = find_split(model, anatomy, collate(rows, _one_length(rows)).to(device).inputs, accelerator.autocast)
    if split is None:
        return BatchSources({name: BatchSource(rows, device) for name, rows in splits.items()})
    frozen = FrozenLayers(model, anatomy, split, accelerator.autocast)
    started = time.perf_counter()
    cache = _Cache(frozen, splits, train, device)
    states = cache.states()
    sources: dict[str, BatchSource] = {
        name: FeatureBatchSource(rows, device, frozen, states.get(id(rows))) for name, rows in splits.items()
    }
    described = FrozenFeatures(
        layers=split.depth,
        states=len(split.reads),
        first_token_only=split.first_token,
        cache=cache.place,
        bytes=sum(tensor.nbytes for flat in states.values() for tensor in flat.tensors.values()),
        reused=cache.reused,
    )
    seconds = time.perf_counter() - started
    _log_features(described, seconds)
    return BatchSources(sources, described, seconds)


class _Cache:
    """Where the states of all splits are kept: `memory`, `disk` or `off`."""

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

    def states(self) -> dict[int, PackedFeatures]:
        """States by the rows' identity; empty where nothing is kept."""
        if self.place == "off":
            return {}
        cache, folder = FeatureCache(self.frozen, self.device, self.train.precision), cache_dir() / _FOLDER
        try:
            if self.place == "memory":
                found = {key: cache.in_memory(rows, self.memory) for key, rows in self.rows.items()}
            else:
                found = {key: cache.on_disk(rows, folder) for key, rows in self.rows.items()}
                cache.keep_within(self.disk, folder)
        except OSError as error:
            _log.warning(
                "the states of the frozen layers cannot be kept in %s (%s): they are computed with every batch",
                *(folder, error),
            )
            self.place = "off"
            return {}
        self.reused = all(reused for _, reused in found.values())
        return {key: states for key, (states, _) in found.items()}

    def _bytes(self, rows: TokenRows) -> int:
        tokens = int(feature_offsets(rows, first_token=self.frozen.split.first_token)[-1])
        return tokens * self.frozen.encoder.config.hidden_size * torch.float32.itemsize * len(self.frozen.split.reads)

    def _choose(self, splits: Mapping[str, TokenRows]) -> str:
        if self.train.cache != "auto":
            return self.train.cache
        if _rows_seen(splits, self.train) <= sum(map(len, self.rows.values())):
            # Nothing would be saved.
            return "off"
        if self.size <= min(self.memory, psutil.virtual_memory().available // 2):
            return "memory"
        if self.size <= min(self.disk, _free_bytes()):
            return "disk"
        _log.info("the states of the frozen layers (%.1f GiB) fit neither memory nor disk", self.size / 2**30)
        return "off"


def _rows_seen(splits: Mapping[str, TokenRows], train: TrainConfig) -> int:
    """Rows that training and its evaluations look at, one after the other."""
    num_train = len(splits["train"])
    steps = num_training_steps(num_train, train)
    of_an_epoch = steps_per_epoch(num_train, train)
    epochs, rest = divmod(steps, of_an_epoch)
    evaluations = math.ceil(steps / (train.evaluate_every or of_an_epoch))
    return epochs * num_train + rest * train.batch_size + evaluations * len(splits.get("selection", ()))


def _free_bytes() -> int:
    folder = cache_dir()
    while not folder.exists():
        folder = folder.parent
    return psutil.disk_usage(str(folder)).free


def _one_length(rows: TokenRows, most: int = 4) -> np.ndarray:
    """A few rows of the same length, so that none is padded; of several tokens, where there are such."""
    several = rows.lengths[rows.lengths > 1]
    middle = np.sort(several if len(several) else rows.lengths)[max(len(several), 1) // 2]
    return np.flatnonzero(rows.lengths == middle)[:most]


def _log_features(frozen: FrozenFeatures, seconds: float) -> None:
    place = {"off": "computed with every batch", "memory": "kept in memory", "disk": "kept on disk"}[frozen.cache]
    what = "the first token's state" if frozen.first_token_only else f"{frozen.states} states a token"
    found = "found" if frozen.reused else f"in {seconds:.1f} s"
    size = "" if frozen.cache == "off" else f" ({frozen.bytes / 2**20:,.0f} MiB, {found})"
    _log.info("layers 1..%d are frozen and run without dropout: %s, %s%s", frozen.layers, what, place, size)
