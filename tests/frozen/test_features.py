"""The pass that computes features: how many rows and states it holds, and where the features go."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from behaviour.matrix import adapted
from petl_bench.errors import RequestError
from petl_bench.estimate.tensor_modes import StorageLog
from petl_bench.frozen import batch_source
from petl_bench.frozen.batch_source import _FeatureStore
from petl_bench.frozen.features import _copied, _gathered, compute_features
from petl_bench.frozen.split import FrozenLayers, SplitPoint
from petl_bench.tasks.encode import EncodedRows
from petl_bench.training import TrainConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def rows(count, length):
    offsets = np.arange(count + 1) * length
    ids = np.random.default_rng(0).integers(10, 50, size=offsets[-1]).astype(np.int32)
    return EncodedRows(ids, None, offsets, np.zeros(count, dtype=np.int64), 0)


@pytest.fixture(scope="module")
def model():
    return adapted("head", "bert")


def frozen_layers(model, reads, depth=None):
    adapted_model, backbone = model
    depth = backbone.plan.num_layers if depth is None else depth
    split = SplitPoint(depth, reads, in_tuples=False)
    return FrozenLayers(adapted_model, backbone.anatomy, split, nullcontext)


def test_a_pass_takes_at_most_the_rows_of_an_evaluation_batch(model):
    frozen = frozen_layers(model, (1,))
    sizes = []
    hook = frozen.layers[0].register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    try:
        found = compute_features(frozen, rows(20, 16), np.arange(20), CPU, max_rows=8)
    finally:
        hook.remove()
    assert sizes == [8, 8, 4]
    assert torch.equal(found.tensors[1], compute_features(frozen, rows(20, 16), np.arange(20), CPU).tensors[1])


def test_a_pass_keeps_only_the_states_that_are_read(model):
    """The peak grows by one state, 8 x 16 x d floats, with every further state that is read."""
    num_layers = model[1].plan.num_layers

    def peak(reads):
        log = StorageLog(lambda _: True, lambda *_: None)
        frozen = frozen_layers(model, reads)
        inputs = {"input_ids": torch.full((8, 16), 7)}
        log.add_all([*frozen.model.parameters(), *frozen.model.buffers(), *inputs.values()])
        before = len(log.events)
        with log:
            states = frozen.states(inputs)
        assert tuple(states) == reads
        sizes = np.cumsum([change for _, change in log.events[before:]])
        return int(sizes.max()), int(sizes[-1])

    state = 8 * 16 * model[0].config.hidden_size * 4
    # What is left at the end is what the caller got.
    assert peak((num_layers,))[1] == state
    assert peak(tuple(range(num_layers + 1)))[1] == (num_layers + 1) * state
    assert peak(tuple(range(num_layers + 1)))[0] - peak((num_layers,))[0] >= (num_layers - 2) * state


@pytest.mark.parametrize("lengths", [(3, 1, 5), (4, 4), (1, 1, 1)])
def test_rows_gathered_on_a_device_are_those_copied_on_the_cpu(lengths):
    flat = torch.randn(30, 6)
    starts, lengths = np.array([17, 2, 9])[: len(lengths)], np.array(lengths)
    assert torch.equal(_gathered(flat, starts, lengths), _copied(flat, starts, lengths))


@pytest.mark.parametrize(
    ("setting", "reads", "free", "place"),
    [
        ("auto", 12, 10**9, "device"),
        # Twelve states a token of 200 rows x 16 tokens x 64 floats are 9.8 MB: half of what is free must do.
        ("auto", 12, 19_000_000, "off"),
        # One state is moved sooner than twelve layers are computed.
        ("auto", 1, 0, "memory"),
        ("memory", 12, 10**9, "memory"),
        ("off", 12, 10**9, "off"),
        ("device", 12, 0, "device"),
    ],
)
def test_where_features_are_kept_on_a_cuda_device(monkeypatch, setting, reads, free, place):
    monkeypatch.setattr(batch_source, "_free_device_bytes", lambda: free)
    split = SplitPoint(12, tuple(range(reads)), in_tuples=False)
    frozen = SimpleNamespace(split=split, encoder=SimpleNamespace(config=SimpleNamespace(hidden_size=64)))
    store = _FeatureStore(frozen, {"train": rows(200, 16)}, TrainConfig(cache=setting), CUDA)
    assert store.place == place


def test_features_kept_on_the_device_are_the_ones_kept_in_memory(model, monkeypatch):
    frozen = frozen_layers(model, (1,))
    store = _FeatureStore(frozen, {"train": rows(20, 16)}, TrainConfig(cache="off"), CPU)
    store.place = "device"
    on_device = next(iter(store.features().values()))
    assert store.features_seconds == store.computed_seconds > 0
    store.place = "memory"
    assert torch.equal(on_device.tensors[1], next(iter(store.features().values())).tensors[1])


def test_a_cpu_has_no_other_memory_to_keep_features_in():
    split = SplitPoint(12, (12,), in_tuples=False)
    frozen = SimpleNamespace(split=split, encoder=SimpleNamespace(config=SimpleNamespace(hidden_size=64)))
    with pytest.raises(RequestError, match=r"train\.cache=device .* train\.cache=memory"):
        _FeatureStore(frozen, {"train": rows(20, 16)}, TrainConfig(cache="device"), CPU)
