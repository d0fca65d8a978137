"""What the tests of frozen layers share: an empty cache, and all that a run gives."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from petl_bench.frozen import cache as feature_cache
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    feature_cache._memory_entries.clear()
    yield
    feature_cache._memory_entries.clear()


@pytest.fixture
def outcome():
    """Makes a run; gives its record, its losses and scores by evaluation, and its weights."""

    def make(cfg):
        record = run(cfg)
        (file,) = identify(cfg).folder.glob("*/*.safetensors")
        return record, [(entry.train_loss, entry.scores) for entry in record.history], load_file(file)

    return make
