"""The soft top-k: the invariants of Qian et al. (arXiv 2211.01267) and of its closed form."""

from __future__ import annotations

import pytest
import torch

from petl_bench.methods.coda.routing import exact_soft_top_k, iterative_soft_top_k


def full(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def exact(scores: torch.Tensor, k: int, epsilon: float = 0.03, mask: torch.Tensor | None = None) -> torch.Tensor:
    budget = torch.full((len(scores),), k)
    return exact_soft_top_k(scores, budget, full(*scores.shape) if mask is None else mask, epsilon)


@pytest.fixture
def scores():
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("k", [1, 2, 26, 43, 127])
@pytest.mark.parametrize("std", [0.02, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("epsilon", [0.03, 0.1, 1.0])
def test_weights_lie_in_0_to_1_and_sum_to_k(scores, k, std, epsilon):
    weights = exact(std * scores, k, epsilon)
    assert (weights >= 0).all() and (weights <= 1).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.full((64,), float(k)), rtol=0, atol=1e-4)


def test_ends_of_the_range(scores):
    assert torch.equal(exact(scores, 128), torch.ones_like(scores))
    assert torch.equal(exact(scores, 0), torch.zeros_like(scores))
    double = scores.double()
    torch.testing.assert_close(exact(double, 1), (double / 0.03).softmax(dim=-1), rtol=0, atol=1e-12)


def test_ties_share_the_budget():
    torch.testing.assert_close(exact(torch.zeros(1, 8), 2), torch.full((1, 8), 0.25))


def test_shift_and_common_scale_change_nothing_and_order_stays(scores):
    double = scores.double()
    weights = exact(double, 43)
    torch.testing.assert_close(exact(double + 7.0, 43), weights, rtol=0, atol=1e-10)
    torch.testing.assert_close(exact(double * 3.0, 43, 0.09), weights, rtol=0, atol=1e-10)
    order = double.argsort(dim=-1)
    assert (weights.gather(-1, order).diff(dim=-1) >= 0).all()


def test_padding_gets_nothing_and_counts_for_nothing(scores):
    mask = full(64, 128)
    mask[:, 100:] = False
    padded = exact(scores, 20, mask=mask)
    assert torch.equal(padded[:, 100:], torch.zeros(64, 28))
    torch.testing.assert_close(padded[:, :100], exact(scores[:, :100], 20))


def test_rows_have_budgets_of_their_own(scores):
    budgets = torch.arange(64) + 1
    weights = exact_soft_top_k(scores, budgets, full(64, 128), 0.03)
    torch.testing.assert_close(weights.sum(dim=-1), budgets.float(), rtol=0, atol=1e-4)


def test_it_hardens_as_epsilon_falls():
    values = torch.randperm(32, generator=torch.Generator().manual_seed(1)).double()[None]
    hard = (values >= 32 - 10).double()
    gap = 1.0
    assert (exact(values, 10, gap / 20) - hard).abs().max() < 1e-3


def test_its_gradient_is_the_analytic_one():
    values = torch.randn(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jacobian = torch.autograd.functional.jacobian(lambda s: exact(s, 5, 0.3), values)[0, :, 0]
    weights = exact(values, 5, 0.3)[0]
    free = (weights < 1).double()
    share = weights * free
    analytic = (torch.diag(share) - torch.outer(share, share) / share.sum()) / 0.3
    torch.testing.assert_close(jacobian, analytic, rtol=0, atol=1e-8)
    torch.testing.assert_close(jacobian.sum(dim=0), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-10)
    assert 0 < free.sum() < 12, "the case must have capped and free entries"
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: exact(s, 5, 0.3), values)


def test_the_iterate_never_exceeds_the_budget_and_approaches_it(scores):
    budget = torch.full((64,), 43)
    deficits = []
    for iterations in (5, 20, 50, 200):
        weights = iterative_soft_top_k(scores, budget, full(64, 128), 0.03, iterations, epsilon_start=0.03)
        assert (weights.sum(dim=-1) <= 43 + 1e-3).all()
        deficits.append(float((43 - weights.sum(dim=-1)).mean() / 43))
    assert deficits == sorted(deficits, reverse=True)
    # 512 such rows gave 66, 26 and 0.3 % after 20, 50 and 200 steps.
    assert deficits[1:] == pytest.approx([0.66, 0.256, 0.003], abs=0.03)
    scaled = iterative_soft_top_k(scores, budget, full(64, 128), 0.03)
    assert float((43 - scaled.sum(dim=-1)).mean() / 43) == pytest.approx(0.225, abs=0.03)


@pytest.mark.parametrize(("iterations", "epsilon"), [(200, 0.1), (20, 1.0)])
def test_the_iterate_converges_to_the_closed_form(scores, iterations, epsilon):
    budget = torch.full((64,), 43)
    iterate = iterative_soft_top_k(scores, budget, full(64, 128), epsilon, iterations, epsilon_start=epsilon)
    torch.testing.assert_close(iterate, exact(scores, 43, epsilon), rtol=0, atol=1e-3)


def test_gradients_are_finite_with_padding(scores):
    mask = full(64, 128)
    mask[:, 50:] = False
    for solve in (exact_soft_top_k, iterative_soft_top_k):
        values = scores.clone().requires_grad_()
        (solve(values, torch.full((64,), 17), mask, 0.03) * scores).sum().backward()
        assert torch.isfinite(values.grad).all()
        assert values.grad[:, :50].abs().sum() > 0
        assert torch.equal(values.grad[:, 50:], torch.zeros(64, 78))
