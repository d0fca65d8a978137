"""Bottleneck adapters: initialisation, placement and what their parameters mean."""

from __future__ import annotations

import math

import pytest
import torch

from behaviour.matrix import adapted, batch, logits, plain_model
from petl_bench.methods.houlsby.model import HoulsbyConfig, NormAdapter, SerialAdapter
from petl_bench.methods.modules import Bottleneck


def serial_layers(model: torch.nn.Module) -> list[SerialAdapter]:
    return [module for module in model.modules() if isinstance(module, SerialAdapter)]


@pytest.mark.parametrize("std", [1e-3, 1e-2])
def test_weights_are_cut_at_two_standard_deviations(std):
    torch.manual_seed(0)
    adapter = Bottleneck(768, 64, activation="gelu_pytorch_tanh", init="truncated_normal", init_std=std)
    for linear in (adapter.down, adapter.up):
        assert linear.weight.abs().max() <= 2 * std
        assert linear.weight.std().item() == pytest.approx(0.880 * std, rel=0.02)
        assert torch.equal(linear.bias, torch.zeros_like(linear.bias))


@pytest.mark.parametrize(("std", "bound"), [(1e-3, 1e-3), (1e-2, 5e-2)])
def test_the_start_is_near_the_base_but_not_it(std, bound):
    model, _ = adapted("houlsby", "bert", f"method.init_std={std}")
    change = (logits(model) - logits(plain_model("bert"))).abs().max()
    assert 0 < change < bound


def test_a_zero_up_projection_starts_at_the_base():
    for method in ("houlsby", "pfeiffer", "parallel"):
        model, _ = adapted(method, "bert", "method.init=lora")
        torch.testing.assert_close(logits(model), logits(plain_model("bert")), rtol=0, atol=1e-6)


def test_one_layer_by_hand():
    """Order: dense, dropout, adapter, + residual, norm (google-research/adapter-bert), on two tokens."""
    model, backbone = adapted("houlsby", "bert")
    layer = backbone.anatomy.get_layers(model.base_model.model)[0]
    x = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0))

    def bottleneck(place: SerialAdapter, y: torch.Tensor) -> torch.Tensor:
        adapter = place.houlsby_adapter["default"]
        z = y @ adapter.down.weight.T + adapter.down.bias
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return y + z @ adapter.up.weight.T + adapter.up.bias

    def normed(norm, y: torch.Tensor) -> torch.Tensor:
        trained = norm.modules_to_save["default"]
        mean, variance = y.mean(-1, keepdim=True), y.var(-1, unbiased=False, keepdim=True)
        return (y - mean) / torch.sqrt(variance + trained.eps) * trained.weight + trained.bias

    with torch.no_grad():
        attended = layer.attention.self(x)[0]
        update = bottleneck(layer.attention.output.dropout, layer.attention.output.dense(attended))
        attended = normed(layer.attention.output.LayerNorm, update + x)
        hidden = torch.nn.functional.gelu(layer.intermediate.dense(attended))
        update = bottleneck(layer.output.dropout, layer.output.dense(hidden))
        expected = normed(layer.output.LayerNorm, update + attended)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_the_adapter_stands_after_the_dropout():
    model, _ = adapted("houlsby", "bert")
    place = serial_layers(model)[0]
    assert isinstance(place.base_layer, torch.nn.Dropout)
    place.base_layer.p = 1.0
    model.train()
    bias = torch.randn(32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        place.houlsby_adapter["default"].up.bias.copy_(bias)
        # All is dropped before the adapter, which still adds its bias.
        assert torch.equal(place(torch.randn(1, 3, 32)), bias.expand(1, 3, 32))


def test_pfeiffer_reads_the_normed_sum_and_is_added_before_the_norm():
    model, _ = adapted("pfeiffer", "bert")
    place = serial_layers(model)[0]
    assert isinstance(place, NormAdapter)
    summed = torch.randn(1, 3, 32)
    with torch.no_grad():
        update = place.houlsby_adapter["default"](place.base_layer(summed))
        assert torch.equal(place(summed), place.base_layer(summed + update))


def test_parallel_reads_the_feed_forward_input():
    model, backbone = adapted("parallel", "bert", "method.scale=4")
    layer = backbone.anatomy.get_layers(model.base_model.model)[0]
    x = torch.randn(1, 3, 32)
    with torch.no_grad():
        adapter = layer.output.dropout.houlsby_adapter["default"]
        plain = layer.output.dense.forward(torch.nn.functional.gelu(layer.intermediate.dense.base_layer(x)))
        bottleneck = adapter.up(adapter.activation(adapter.down(x)))
        expected = layer.output.LayerNorm(plain + 4 * bottleneck + x)
        torch.testing.assert_close(layer.feed_forward_chunk(x), expected, rtol=1e-5, atol=1e-6)
    # Nothing is left behind.
    assert layer.intermediate.dense.relay.input is None


def test_activation_of_the_backbone():
    model, _ = adapted("houlsby", "bert", "method.activation=model")
    assert type(serial_layers(model)[0].houlsby_adapter["default"].activation).__name__ == "GELUActivation"


def test_it_moves_with_the_model():
    model, _ = adapted("houlsby", "distilbert")
    assert model(**batch()).logits.shape == (4, 2)
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
    assert model(**batch()).logits.dtype == torch.float64


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"variant": "houlsbi"}, "variant=houlsbi"),
        ({"init": "zeros"}, "init=zeros"),
        ({"init_std": 0.0}, "init_std"),
        ({"activation": "gulu"}, "gulu"),
        ({"variant": "pfeiffer", "train_layernorm": True}, "train_layernorm must be false"),
    ],
)
def test_settings_out_of_range(setting, words):
    with pytest.raises(ValueError, match=words):
        HoulsbyConfig(**setting)
