"""Fast dropout masks: right share, same seed same mask, torch's own again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from petl_bench.training.device import fast_dropout

CPU = torch.device("cpu")


def mask(seed, p=0.1, shape=(1000, 999)):
    torch.manual_seed(seed)
    return functional.dropout(torch.ones(shape), p) == 0


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_is_right_and_the_rest_is_scaled(p):
    with fast_dropout(CPU):
        dropped = mask(0, p)
        # Five standard deviations.
        assert dropped.float().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / dropped.numel()) ** 0.5)
        if p < 1:
            assert functional.dropout(torch.ones(100), p).max().item() == pytest.approx(1 / (1 - p))


def test_draws_are_independent_of_their_neighbours():
    with fast_dropout(CPU):
        drawn = mask(0, 0.5).flatten().double()
    for lag in (1, 2, 3, 4, 5, 999):
        assert abs(torch.corrcoef(torch.stack([drawn[:-lag], drawn[lag:]]))[0, 1]) < 5e-3, lag


def test_masks_follow_the_seed_and_not_the_threads():
    threads = torch.get_num_threads()
    try:
        with fast_dropout(CPU):
            torch.set_num_threads(1)
            one = mask(3)
            torch.set_num_threads(2)
            assert torch.equal(mask(3), one)
            assert not torch.equal(mask(4), one)
    finally:
        torch.set_num_threads(threads)


def test_attention_uses_it_and_torchs_own_comes_back():
    before = mask(5)
    query = torch.ones(1, 1, 64, 64)
    torch.manual_seed(5)
    attended = functional.scaled_dot_product_attention(query, query, query, dropout_p=0.5)
    with fast_dropout(CPU):
        assert not torch.equal(mask(5), before)
        torch.manual_seed(5)
        assert not torch.equal(functional.scaled_dot_product_attention(query, query, query, dropout_p=0.5), attended)
    assert torch.equal(mask(5), before)


@pytest.mark.parametrize(
    "make", [lambda: torch.ones(0), lambda: torch.ones(3, 5).t(), lambda: torch.ones(7).bfloat16()]
)
def test_any_tensor(make):
    with fast_dropout(CPU):
        assert functional.dropout(make(), 0.5).shape == make().shape
