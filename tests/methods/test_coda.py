"""CoDA's routing and its layer."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from behaviour.matrix import adapted, batch, logits, plain_model
from petl_bench.methods.coda.model import CodaConfig, CodaLayer
from petl_bench.methods.coda.routing import num_routed, route
from petl_bench.model import load_adapter


def layers_of(model: torch.nn.Module) -> list[CodaLayer]:
    return [module for module in model.modules() if isinstance(module, CodaLayer)]


@pytest.mark.parametrize("reduction", [1.5, 3.0, 5.0])
def test_every_example_routes_its_own_k_and_the_first_token(reduction):
    lengths = torch.tensor([30, 17, 6, 1])
    real = torch.arange(30) < lengths[:, None]
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    scores[:, 0] = -100.0
    routing = route(scores, real, CodaConfig(reduction=reduction))
    for row, length in enumerate(lengths.tolist()):
        k = math.ceil(length / reduction)
        chosen = routing.indices[row][routing.valid[row]].tolist()
        assert len(chosen) == k
        assert chosen == sorted(set(chosen))
        assert chosen[0] == 0 and max(chosen) < length
        best = scores[row, 1:length].topk(k - 1).indices + 1
        assert set(chosen[1:]) == set(best.tolist())
        weights = routing.weights[row]
        assert weights[0] == 1
        assert torch.equal(weights[~routing.valid[row]], torch.zeros(int((~routing.valid[row]).sum())))
        assert weights.sum() <= k + 1e-4


def test_equal_scores_go_by_position_whatever_the_padding_and_the_rounding():
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([0.5, 0.2, 0.7, 0.2, 0.7, 0.2, 0.2, 0.7, 0.2, 0.1, 0.2])
    # The first, the three of 0.7, and the first two of 0.2.
    expected = [0, 1, 2, 3, 4, 7]
    for padding in (0, 1, 5, 30, 500):
        for left in (0, padding):
            padded = torch.nn.functional.pad(scores, (left, padding - left)).repeat(20, 1)
            padded *= 1 + 1e-6 * torch.rand(padded.shape, generator=generator)
            real = torch.nn.functional.pad(torch.ones(20, 11), (left, padding - left)).bool()
            routing = route(padded, real, CodaConfig(reduction=2))
            for indices, valid in zip(routing.indices, routing.valid, strict=True):
                assert (indices[valid] - left).tolist() == expected
    # A row of one token said eleven times routes the first six.
    assert route(torch.full((1, 11), 0.3), torch.ones(1, 11).bool(), CodaConfig(reduction=2)).indices.tolist() == [
        [0, 1, 2, 3, 4, 5]
    ]


def test_scores_that_differ_by_more_than_rounding_are_not_equal():
    scores = torch.tensor([[0.0, 0.5, 0.5002, 0.5001, 0.5003]])
    routing = route(scores, torch.ones(1, 5).bool(), CodaConfig(reduction=2))
    assert routing.indices.tolist() == [[0, 2, 4]]


def test_without_forcing_the_budget_is_all_scores():
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    scores[:, 0] = -100.0
    real = torch.ones(4, 30, dtype=torch.bool)
    routing = route(scores, real, CodaConfig(force_first=False))
    assert (routing.indices != 0).all()
    assert torch.equal(routing.indices.sort().values, scores.topk(10).indices.sort().values)


@pytest.mark.parametrize(("tokens", "reduction", "k"), [(9, 3, 3), (10, 3, 4), (128, 3, 43), (128, 5, 26), (1, 5, 1)])
def test_k_is_rounded_up(tokens, reduction, k):
    assert num_routed(torch.tensor([tokens]), reduction).item() == k


def test_plain_parallel_adapter_starts_as_the_dense_model():
    model, _ = adapted("coda_plain", "bert")
    torch.testing.assert_close(logits(model), logits(plain_model("bert")), rtol=0, atol=1e-5)


def test_unrouted_rows_take_the_adapter_alone_and_permuting_rows_permutes_the_output():
    model, _ = adapted("coda", "bert", "method.force_first=false")
    layer = layers_of(model)[0]
    torch.nn.init.normal_(layer.coda_adapter["default"].up.weight)
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        routing = route(layer.scores("default", x), torch.ones(2, 12, dtype=torch.bool), layer.settings["default"])
        output = layer(x, None)
        light = x + layer.coda_adapter["default"](x)
        for row in range(2):
            routed = set(routing.indices[row].tolist())
            assert len(routed) == 4
            for token in range(12):
                assert torch.equal(output[row, token], light[row, token]) == (token not in routed)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(layer(x[:, order], None), output[:, order], rtol=1e-5, atol=1e-6)


def test_routed_tokens_see_only_each_other_or_all():
    """Changing a token that is not routed changes a routed one under k2all alone."""
    for method, expected in (("coda", False), ("coda_k2all", True)):
        model, _ = adapted(method, "bert")
        layer = layers_of(model)[0]
        x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            routing = route(layer.scores("default", x), torch.ones(1, 12, dtype=torch.bool), layer.settings["default"])
            spectator = next(token for token in range(12) if token not in routing.indices[0].tolist())
            changed = x.clone()
            # Orthogonal to the router, so that the same tokens are routed.
            router = layer.coda_router["default"]
            noise = torch.randn(32, generator=torch.Generator().manual_seed(2))
            changed[0, spectator] += noise - (noise @ router) / (router @ router) * router
            difference = (layer(x, None) - layer(changed, None))[0, routing.indices[0]].abs().max()
        assert (difference > 1e-6) == expected


def test_routed_tokens_keep_their_distances():
    """They come out of the layer as if all other tokens were hidden from them where they stand."""
    model, backbone = adapted("coda", "mpnet", "method.router=random")
    layer, encoder = layers_of(model)[1], model.get_submodule(f"base_model.model.{backbone.anatomy.encoder}.encoder")
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(encoder.relative_attention_bias.weight)
    real = torch.arange(12) < torch.tensor([[12], [9]])
    hidden = torch.finfo(torch.float32).min
    mask = torch.zeros(2, 1, 1, 12).masked_fill(~real[:, None, None], hidden)
    with torch.no_grad():
        bias = encoder.compute_position_bias(x)
        routing = route(layer.scores("default", x), real, layer.settings["default"], learned=False)
        routed = torch.zeros(2, 12, dtype=torch.bool)
        for row in range(2):
            routed[row, routing.indices[row][routing.valid[row]]] = True
        alone = layer.base_layer(x, torch.zeros(2, 1, 1, 12).masked_fill(~routed[:, None, None], hidden), bias)[0]
        # The adapter starts at zero, and every weight is 1.
        expected = torch.where(routed[..., None], alone, x)
        torch.testing.assert_close(layer(x, mask, bias)[0], expected, rtol=1e-5, atol=1e-6)


def test_k2all_of_everything_is_the_frozen_layer():
    for architecture in ("bert", "distilbert"):
        model, _ = adapted("coda_k2all", architecture)
        layer = layers_of(model)[1]
        x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(layer.attend_to_all(x, x, None), layer.base_layer(x, None), rtol=1e-5, atol=1e-6)


def test_the_router_learns_through_its_weights_alone():
    def router_gradient(*overrides: str) -> float:
        model, _ = adapted("coda", "bert", *overrides)
        model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        return float(layers_of(model)[0].coda_router["default"].grad.abs().sum())

    assert router_gradient() > 0
    assert router_gradient("method.solver=iterative") > 0
    assert router_gradient("method.straight_through=true") > 0


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "mpnet", "modernbert"]
)
@pytest.mark.parametrize("attention", ["k2k", "k2all"])
def test_no_parameter_is_without_a_gradient(architecture, attention):
    """Where the head reads the first token alone, no router could learn in the last layer."""
    if attention == "k2all" and architecture in ("deberta-v2", "mpnet", "modernbert"):
        pytest.skip("refused")
    # At a high temperature every weight depends on every score.
    model, _ = adapted("coda", architecture, f"method.attention={attention}", "method.epsilon=1")
    for layer in layers_of(model):
        torch.nn.init.normal_(layer.coda_adapter["default"].up.weight, std=0.1)
    ids = torch.randint(10, 50, (4, 24), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    last = architecture == "modernbert"  # its head reads the mean of all tokens
    assert ["default" in layer.coda_router for layer in layers_of(model)] == [True, True, True, last]


@pytest.mark.parametrize(
    ("overrides", "last"),
    [
        (["method.force_first=false"], True),
        (["layers=window", "layers.bottom=1", "layers.top=3", "layers.head=4"], True),
        (["layers=window", "layers.bottom=1", "layers.top=3"], False),
        (["method.last_router=learned"], True),
    ],
)
def test_the_last_adapted_layer_has_a_router_where_one_learns(overrides, last):
    model, _ = adapted("coda", "bert", *overrides)
    assert bool(layers_of(model)[-1].coda_router) == last


@pytest.mark.parametrize(("pooling", "routers"), [("mean", 4), ("cls", 3)])
def test_a_mean_over_tokens_trains_the_last_router(pooling, routers):
    config = plain_model("modernbert").config
    config.classifier_pooling = pooling
    model = get_peft_model(AutoModelForSequenceClassification.from_config(config), CodaConfig(task_type="SEQ_CLS"))
    assert sum("coda_router" in name for name, _ in model.named_parameters()) == routers


def test_the_last_layer_routes_as_many_tokens_as_the_others_with_weight_one():
    model, _ = adapted("coda", "bert")
    layer = layers_of(model)[-1]
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    best = x[:, 1:].norm(dim=-1).topk(3).indices + 1
    with torch.no_grad():
        output = layer(x, None)
        light = x + layer.coda_adapter["default"](x)
    for row in range(2):
        routed = {0, *best[row].tolist()}
        assert {token for token in range(12) if not torch.equal(output[row, token], light[row, token])} == routed


def test_an_adapter_of_before_keeps_its_last_router(tmp_path):
    model, _ = adapted("coda", "bert", "method.last_router=learned")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    del content["last_router"]
    file.write_text(json.dumps(content))
    for loaded in (
        PeftModel.from_pretrained(plain_model("bert"), tmp_path),
        load_adapter(plain_model("bert"), tmp_path),
    ):
        assert torch.equal(logits(loaded.eval()), logits(model))


def test_straight_through_weighs_one_and_starts_as_the_dense_layer_for_all_queries():
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    routing = route(scores, torch.ones(3, 20, dtype=torch.bool), CodaConfig(straight_through=True))
    torch.testing.assert_close(routing.weights, torch.ones(3, 7), rtol=0, atol=1e-6)


@pytest.mark.parametrize("router", ["random", "first", "norm"])
def test_ablations_of_the_router(router):
    model, _ = adapted("coda", "bert", f"method.router={router}")
    layer = layers_of(model)[0]
    assert not layer.coda_router
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    real = torch.ones(2, 12, dtype=torch.bool)
    chosen = route(layer.scores("default", x), real, layer.settings["default"]).indices
    if router == "first":
        assert chosen.tolist() == [[0, 1, 2, 3]] * 2
    elif router == "norm":
        best = x[:, 1:].norm(dim=-1).topk(3).indices + 1
        assert torch.equal(chosen[:, 1:], best.sort().values)
    else:
        assert torch.equal(chosen[0], chosen[1])
        other = route(layers_of(model)[1].scores("default", x), real, layer.settings["default"]).indices
        assert not torch.equal(chosen, other)


def test_routing_stays_in_float32_under_autocast():
    model, _ = adapted("coda", "bert")
    layer = layers_of(model)[0]
    x = torch.randn(1, 12, 32)
    plain = layer.scores("default", x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer.scores("default", x)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, plain)
        assert (
            route(scores, torch.ones(1, 12, dtype=torch.bool), layer.settings["default"]).weights.dtype == torch.float32
        )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"reduction": 0.5}, "reduction=0.5"),
        ({"router": "best"}, "router=best"),
        ({"last_router": "best"}, "last_router=best"),
        ({"attention": "k2n"}, "attention=k2n"),
        ({"router_std": 0.0}, "router_std"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"activation": "gulu"}, "gulu"),
    ],
)
def test_settings_out_of_range(setting, words):
    with pytest.raises(ValueError, match=words):
        CodaConfig(**setting)
