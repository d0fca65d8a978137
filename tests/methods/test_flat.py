"""FLAT's invariants (all but the counts, which tests/estimate/test_parameter_counts.py holds), and the ladder's."""

from __future__ import annotations

import pytest
import torch

from behaviour.matrix import LABELS, adapted, batch, logits, train
from petl_bench.errors import RequestError
from petl_bench.methods.flat.model import FlatConfig, FlatNetwork, LayerFusion
from petl_bench.methods.lst.model import LadderNetwork, LstConfig
from petl_bench.methods.modules import SideEncoder

L, D = 4, 32


def states(batch_size: int = 3, tokens: int = 6, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch_size, tokens, D, generator=generator) * (1 + level) for level in range(L + 1)]


def network(**settings) -> FlatNetwork:
    torch.manual_seed(0)
    made = FlatNetwork(L + 1, D, FlatConfig(width=8, **settings)).eval()
    if made.fusion.score == "dot":
        torch.nn.init.normal_(made.fusion.query.weight)
    return made


def side_encoder(model: torch.nn.Module) -> SideEncoder:
    return next(module for module in model.modules() if isinstance(module, SideEncoder))


@pytest.mark.parametrize("method", ["flat", "lst"])
def test_nothing_is_propagated_into_the_backbone(method):
    model, backbone = adapted(method, "bert")
    seen: list[list[torch.Tensor]] = []
    side_encoder(model).networks["default"].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model.train()
    model(**batch(), labels=LABELS).loss.backward()
    assert len(seen[0]) == backbone.plan.num_layers + 1
    assert all(state.grad_fn is None and not state.requires_grad for state in seen[0])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name


@pytest.mark.parametrize("method", ["flat", "lst"])
def test_two_hundred_steps_leave_the_backbone_bit_identical(method):
    model, _ = adapted(method, "bert")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    train(model, steps=200, learning_rate=1e-3)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters() if name in before)


@pytest.mark.parametrize("method", ["flat", "lst"])
def test_the_encoder_stays_in_eval_mode(method):
    model, _ = adapted(method, "bert")
    encoder = side_encoder(model)
    model.train()
    assert encoder.networks["default"].training
    assert not any(module.training for module in encoder.base_layer.modules())
    kept: list[torch.Tensor] = []
    encoder.networks["default"].register_forward_pre_hook(lambda _module, inputs: kept.extend(inputs[0]))
    model(**batch())
    model(**batch())
    half = len(kept) // 2
    assert all(torch.equal(first, second) for first, second in zip(kept[:half], kept[half:], strict=True))


@pytest.mark.parametrize("method", ["flat", "lst"])
def test_kept_states_give_the_same_logits(method):
    model, _ = adapted(method, "roberta")
    train(model)
    encoder, inputs = side_encoder(model), batch()
    with torch.no_grad():
        kept = encoder.base_layer(**inputs, output_hidden_states=True).hidden_states
        pooled = encoder.networks["default"](list(kept), inputs["attention_mask"])
        classifier = model.base_model.model.classifier
        assert torch.equal(classifier.classifiers["default"](pooled), logits(model))


@pytest.mark.parametrize("score", ["dot", "additive", "scalar", "uniform"])
def test_weights_of_the_layers_start_even(score):
    torch.manual_seed(0)
    fusion = LayerFusion(L + 1, D, 8, score, include_embeddings=True)
    weights = fusion.layer_weights(fusion.project(states()))
    assert weights.shape == (3, 6, L + 1)
    assert torch.equal(weights, torch.full_like(weights, 1 / (L + 1)))


def test_weights_are_a_tokens_own_and_sum_to_one():
    fusion = network().fusion
    given = states()
    with torch.no_grad():
        weights = fusion.layer_weights(fusion.project(given))
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 6))
        changed = [state.clone() for state in given]
        for state in changed:
            state[1, 2] += torch.randn(D, generator=torch.Generator().manual_seed(5))
        difference = (fusion.layer_weights(fusion.project(changed)) - weights).abs().amax(dim=-1)
    assert difference[1, 2] > 1e-3
    difference[1, 2] = 0
    assert difference.max() == 0


@pytest.mark.parametrize("settings", [{}, {"side": "mlp"}, {"side": "none"}, {"pool": "cls"}, {"score": "scalar"}])
def test_padding_and_batch_order_change_nothing(settings):
    side = network(**settings)
    given, mask = states(), torch.ones(3, 6)
    with torch.no_grad():
        expected = side(given, mask)
        padded = [torch.nn.functional.pad(state, (0, 0, 0, 7), value=3.0) for state in given]
        torch.testing.assert_close(side(padded, torch.nn.functional.pad(mask, (0, 7))), expected, rtol=0, atol=1e-5)
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(side([state[order] for state in given], mask), expected[order], rtol=0, atol=1e-6)


def test_gradients_at_the_start():
    def without_gradient(side: FlatNetwork) -> set[str]:
        side(states(), torch.ones(3, 6)).square().sum().backward()
        return {name for name, p in side.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}

    torch.manual_seed(0)
    fresh = FlatNetwork(L + 1, D, FlatConfig(width=8)).eval()
    # A query of zero blocks the key for the first step.
    assert without_gradient(fresh) == {"fusion.key.weight"}
    # A bias of the keys would cancel in the softmax over layers.
    assert not any(name.endswith("key.bias") for name, _ in fresh.named_parameters())
    assert without_gradient(network()) == set()


def test_layers_are_told_apart_by_their_projections_alone():
    side, given, mask = network(), states(), torch.ones(3, 6)
    with torch.no_grad():
        expected = side(given, mask)
        order = [2, 0, 1, 3, 4]
        side.fusion.projections = torch.nn.ModuleList(side.fusion.projections[index] for index in order)
        torch.testing.assert_close(side([given[index] for index in order], mask), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("made", [network(), LadderNetwork(L, D, 2, LstConfig(width=8))])
def test_a_missing_state_is_an_error(made):
    with pytest.raises(ValueError, match="5 hidden states and got 4"):
        made(states()[1:], torch.ones(3, 6))


def test_it_can_memorise():
    torch.manual_seed(0)
    side, classifier = FlatNetwork(L + 1, D, FlatConfig(dropout=0.0)), torch.nn.Linear(D, 2)
    given, mask = states(32, 12), torch.ones(32, 12)
    labels = torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW([*side.parameters(), *classifier.parameters()], lr=3e-3)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(classifier(side(given, mask)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


def test_ablations_reduce_to_what_they_say():
    given = states()
    uniform = network(score="uniform").fusion
    torch.testing.assert_close(uniform(given), uniform.project(given).mean(dim=2))
    last = network(score="last").fusion
    assert len(last.projections) == 1
    torch.testing.assert_close(last(given), last.project(given)[:, :, 0])
    moved = [torch.zeros_like(state) for state in given[:-1]] + [given[-1]]
    assert torch.equal(last(moved), last(given))
    without = network(include_embeddings=False).fusion
    assert len(without.projections) == L
    assert torch.equal(without([torch.zeros_like(given[0]), *given[1:]]), without(given))


def test_the_count_depends_on_layers_and_not_on_inputs():
    def size(num_states: int) -> int:
        return sum(p.numel() for p in FlatNetwork(num_states, D, FlatConfig(width=8)).parameters())

    assert size(8) - size(7) == D * 8 + 8


def test_the_ladder_by_hand():
    torch.manual_seed(0)
    ladder = LadderNetwork(2, D, 2, LstConfig(width=8, temperature=0.5)).eval()
    ladder.gates.data = torch.tensor([0.3, -0.7])
    given, mask = states()[:3], torch.ones(3, 6)
    with torch.no_grad():
        side = ladder.downs[0](given[0])
        for index in (0, 1):
            mu = 1 / (1 + torch.exp(-ladder.gates[index] / 0.5))
            side = ladder.blocks[index](mu * side + (1 - mu) * ladder.downs[index + 1](given[index + 1]), mask)
        torch.testing.assert_close(ladder(given, mask), ladder.up(side).mean(dim=1))


def test_dropped_rungs_are_not_read():
    ladder = LadderNetwork(L, D, 2, LstConfig(width=8, drop_layers=[0, 2])).eval()
    assert (len(ladder.blocks), len(ladder.downs), len(ladder.gates)) == (2, 3, 2)
    given, mask = states(), torch.ones(3, 6)
    changed = [torch.zeros_like(state) if index in (1, 3) else state for index, state in enumerate(given)]
    with torch.no_grad():
        assert torch.equal(ladder(changed, mask), ladder(given, mask))
    with pytest.raises(ValueError, match="drop_layers"):
        LadderNetwork(L, D, 2, LstConfig(drop_layers=[4]))


def test_a_truncated_backbone_is_read_up_to_the_head():
    model, backbone = adapted("flat", "bert", "layers=window", "layers.bottom=1", "layers.top=3")
    assert backbone.plan.head == 3
    assert len(side_encoder(model).networks["default"].fusion.projections) == 4
    with pytest.raises(RequestError, match="reads every layer"):
        adapted("flat", "bert", "layers=top")


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (FlatConfig, {"score": "dots"}),
        (FlatConfig, {"side": "lstm"}),
        (FlatConfig, {"pool": "max"}),
        (FlatConfig, {"width": 0}),
        (FlatConfig, {"dropout": 1.0}),
        (LstConfig, {"reduction": 0}),
        (LstConfig, {"temperature": 0.0}),
        (LstConfig, {"pool": "max"}),
    ],
)
def test_settings_out_of_range(config, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        config(**setting)
