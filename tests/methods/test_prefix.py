"""Prefix tuning: what attention sees, that positions stay, that the reparametrisation is dropped."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from behaviour.matrix import ARCHITECTURES, adapted, batch, logits, plain_model, train
from petl_bench.methods.prefix.model import PrefixConfig, PrefixLayer


def prefix_layers(model: torch.nn.Module) -> list[PrefixLayer]:
    return [module for module in model.modules() if isinstance(module, PrefixLayer)]


def attention_by_hand(layer: PrefixLayer, x: torch.Tensor) -> torch.Tensor:
    attention = layer.base_layer
    keys, values = layer.prefix_key["default"], layer.prefix_value["default"]

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (2, 16)).transpose(1, 2)

    query = heads(attention.query(x))
    key = heads(torch.cat([keys.expand(len(x), -1, -1), attention.key(x)], dim=1))
    value = heads(torch.cat([values.expand(len(x), -1, -1), attention.value(x)], dim=1))
    weights = (query @ key.transpose(-1, -2) / 4).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def test_attention_is_over_prefix_and_tokens():
    model, _ = adapted("prefix", "bert")
    layer = prefix_layers(model)[0]
    for parameter in (layer.prefix_key["default"], layer.prefix_value["default"]):
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(layer(x, None)[0], attention_by_hand(layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_prefix_changes_nothing(architecture):
    """So tokens keep their positions and masks their meaning, also where the attention is written anew (DeBERTa)."""
    model, _ = adapted("prefix", architecture)
    plain = logits(plain_model(architecture))
    assert not torch.equal(logits(model), plain)
    for layer in prefix_layers(model):
        layer.prefix_key["default"].data = torch.zeros(0, 32)
        layer.prefix_value["default"].data = torch.zeros(0, 32)
    torch.testing.assert_close(logits(model), plain, rtol=1e-5, atol=1e-6)


def test_the_longest_sequence_still_fits():
    """PEFT's own prefix tuning shifts the tokens' positions, and a model of 128 positions loses that many tokens."""
    for architecture in ("bert", "roberta", "electra"):
        model, backbone = adapted("prefix", architecture)
        ids = torch.full((1, backbone.max_length), 9)
        assert logits(model, input_ids=ids, attention_mask=torch.ones_like(ids)).isfinite().all()


def test_only_the_wrapped_modules_look_up_our_attention():
    model, backbone = adapted("prefix", "bert", "layers=top", "layers.k=2")
    implementations = [
        layer.get_submodule(backbone.anatomy.self_attention).config._attn_implementation
        if index < 2
        else layer.get_submodule(backbone.anatomy.self_attention).base_layer.config._attn_implementation
        for index, layer in enumerate(backbone.anatomy.get_layers(model.base_model.model))
    ]
    assert implementations == ["sdpa", "sdpa", "petl_bench_prefix", "petl_bench_prefix"]
    assert model.config._attn_implementation == "sdpa"
    unloaded = model.unload()
    found = {m.config._attn_implementation for m in unloaded.modules() if hasattr(m, "config")}
    assert found == {"sdpa"}
    assert not any(hasattr(module, "prefix_source") for module in unloaded.modules())


def test_the_kernel_can_be_changed_later():
    model, _ = adapted("prefix", "bert")
    fast = logits(model)
    model.base_model.model.config._attn_implementation = "eager"
    torch.testing.assert_close(logits(model), fast, rtol=1e-5, atol=1e-6)
    model.base_model.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        prefix_layers(model)[0](torch.randn(1, 3, 32), None)


def test_the_reparametrisation_is_dropped_at_save(tmp_path):
    model, _ = adapted("prefix_mlp", "bert")
    names = {name for name, p in model.named_parameters() if p.requires_grad and "prefix" in name}
    assert len(names) == 5
    assert all(".layer.0.attention.self.prefix_network.default." in name for name in names)
    train(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    prefixes = {name: tuple(tensor.shape) for name, tensor in saved.items() if "prefix" in name}
    assert len(prefixes) == 4 * 2
    assert set(prefixes.values()) == {(5, 32)}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["mlp_hidden"] is None
    loaded = PeftModel.from_pretrained(plain_model("bert"), tmp_path, is_trainable=True).eval()
    assert torch.equal(logits(loaded), logits(model))
    train(loaded)
    assert not torch.equal(logits(loaded), logits(model))


def test_a_reparametrisation_beside_a_plain_prefix():
    model, _ = adapted("prefix", "bert")
    first = logits(model)
    second = copy.deepcopy(model.peft_config["default"])
    second.mlp_hidden, second.modules_to_save = 8, None
    model.add_adapter("second", second)
    model.set_adapter("second")
    train(model)
    assert not torch.equal(logits(model), first)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_dropout_falls_on_prefixes_in_training_alone():
    model, _ = adapted("prefix", "bert", "method.dropout=0.5")
    layer = prefix_layers(model)[0]
    assert torch.equal(*(layer.prefix()[0] for _ in range(2)))
    layer.train()
    dropped = layer.prefix()[0]
    assert 0.2 < (dropped == 0).float().mean() < 0.8


def test_prefixes_start_at_the_given_spread():
    model, _ = adapted("prefix", "bert", "method.length=100", "method.init_std=0.05")
    for layer in prefix_layers(model):
        assert layer.prefix_key["default"].std().item() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("setting", [{"length": 0}, {"mlp_hidden": 0}, {"dropout": 1.0}, {"init_std": 0.0}])
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        PrefixConfig(**setting)
    assert batch()["input_ids"].shape == (4, 10)
