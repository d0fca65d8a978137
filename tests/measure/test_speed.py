"""Timing a finished model, and bytes on disk."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

from petl_bench.estimate.costs import safetensors_bytes
from petl_bench.measure.run_costs import quartiles, time_forward


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(10, 4)
        self.dropout = torch.nn.Dropout(0.5)
        self.seen: list[tuple[int, ...]] = []

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids):
        self.seen.append(tuple(input_ids.shape))
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.dropout(self.words(input_ids))


def test_one_row_and_a_batch_are_timed_the_first_pass_discarded():
    model, state = Encoder().train(), torch.get_rng_state()
    times = time_forward(model, sequence_length=7, seconds=0.0, autocast=nullcontext)
    assert model.seen == [(1, 7)] * 4 + [(32, 7)] * 4
    assert (len(times.one_row), len(times.batch)) == (3, 3)
    assert all(seconds > 0 for seconds in times.one_row + times.batch)
    assert torch.equal(torch.get_rng_state(), state)


def test_repeats_end_where_there_are_enough():
    model = Encoder()
    times = time_forward(model, sequence_length=2, seconds=60.0, autocast=nullcontext)
    assert (len(times.one_row), len(times.batch)) == (50, 50)


def test_quartiles_by_hand():
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("number", [1, 7])
def test_bytes_on_disk_are_those_of_the_file(number, tmp_path):
    tensors = {f"layer.{i}.weight": torch.zeros(i + 1, 3) for i in range(number)}
    tensors |= {"ü": torch.zeros(5, dtype=torch.bfloat16), "number": torch.zeros((), dtype=torch.int64)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    assert safetensors_bytes(tensors) == (tmp_path / "x.safetensors").stat().st_size
