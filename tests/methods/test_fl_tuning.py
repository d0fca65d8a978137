"""FL-tuning: the wider network, its start, and its exact merge."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

from behaviour.matrix import ARCHITECTURES, adapted, batch, logits, plain_model, train
from petl_bench.methods.fl_tuning.model import FlTuningConfig


def test_the_added_units_are_a_network_beside_the_old_one():
    model, backbone = adapted("fl_tuning", "bert")
    layer = backbone.anatomy.get_layers(model.base_model.model)[0]
    units_in = layer.intermediate.dense.fl_tuning_units["default"]
    units_out = layer.output.dense.fl_tuning_units["default"]
    torch.nn.init.normal_(units_in.bias)
    torch.nn.init.normal_(units_out.bias)
    x = torch.randn(1, 3, 32)
    gelu = torch.nn.functional.gelu
    with torch.no_grad():
        old = layer.output.dense.base_layer(gelu(layer.intermediate.dense.base_layer(x)))
        new = units_out(gelu(units_in(x)))
        torch.testing.assert_close(layer.output.dense(layer.intermediate(x)), old + new, rtol=1e-5, atol=1e-6)


def test_it_does_not_start_as_the_base_unless_asked():
    plain = logits(plain_model("bert"))
    assert (logits(adapted("fl_tuning", "bert")[0]) - plain).abs().max() > 1e-4
    zero, _ = adapted("fl_tuning", "bert", "method.zero_init=true")
    torch.testing.assert_close(logits(zero), plain, rtol=0, atol=0)


def test_weights_are_cut_at_two_standard_deviations_and_biases_zero():
    model, backbone = adapted("fl_tuning", "bert")
    for layer in backbone.anatomy.get_layers(model.base_model.model):
        for projection in (layer.intermediate.dense, layer.output.dense):
            units = projection.fl_tuning_units["default"]
            assert units.weight.abs().max() <= 0.04
            assert units.weight.std().item() == pytest.approx(0.0176, rel=0.15)
            assert torch.equal(units.bias, torch.zeros_like(units.bias))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_is_one_wider_network_that_saves_and_loads(architecture, tmp_path):
    model, backbone = adapted("fl_tuning", architecture)
    train(model)
    model.double()
    before = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-12)
    first = backbone.anatomy.get_layers(merged)[0].get_submodule(backbone.anatomy.feed_forward_out)
    assert (type(first), first.in_features) == (torch.nn.Linear, 64 + 12)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(logits(loaded), before, rtol=0, atol=1e-12)


def test_two_active_adapters_widen_together():
    encoder = plain_model("modernbert").model.double()
    model = get_peft_model(encoder, FlTuningConfig(units=12)).eval()
    model.add_adapter("second", FlTuningConfig(units=5))
    alone = model(**batch()).last_hidden_state
    model.base_model.set_adapter(["default", "second"])
    both = model(**batch()).last_hidden_state
    assert not torch.equal(alone, both)
    merged = model.base_model.merge_and_unload()
    torch.testing.assert_close(merged(**batch()).last_hidden_state, both, rtol=0, atol=1e-12)


def test_merging_some_layers_warns_that_the_config_cannot_say_so():
    model, _ = adapted("fl_tuning", "bert", "layers=top", "layers.k=1")
    with pytest.warns(UserWarning, match="different widths"):
        merged = model.merge_and_unload()
    assert merged(**batch()).logits.shape == (4, 2)


@pytest.mark.parametrize("setting", [{"units": 0}, {"init_std": 0.0}])
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        FlTuningConfig(**setting)
