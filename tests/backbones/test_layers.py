"""Layer plans: the truncated encoder, who gets gradients, and that (1, L, L) is ordinary fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from behaviour.matrix import LABELS, adapted, batch, logits, opened, plain_model, train
from petl_bench.backbones.anatomy import LayersConfig
from petl_bench.backbones.load import open_backbone
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext


def full(*layers: str, architecture: str = "roberta"):
    cfg, backbone = opened(architecture, "method=full", *layers)
    torch.manual_seed(0)
    model = backbone.build_model(2)
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=10)
    return adapt(model, cfg.method, context), backbone


@pytest.mark.parametrize("head", [1, 3, 4])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_a_truncated_encoder_gives_the_full_ones_inner_state(architecture, head, tmp_path):
    whole = plain_model(architecture)
    whole.save_pretrained(tmp_path)
    cfg, _ = opened(architecture)
    settings = replace(cfg.backbone, weights="pretrained", path=str(tmp_path), architecture={})
    window = LayersConfig(name="window", bottom=1, top=head, head=head)
    cut = open_backbone(settings, window).build_model(2).eval()
    name = open_backbone(settings, window).anatomy.encoder
    with torch.no_grad():
        inner = whole.get_submodule(name)(**batch(), output_hidden_states=True).hidden_states[head]
        assert torch.equal(cut.get_submodule(name)(**batch()).last_hidden_state, inner)


def test_gradients_reach_the_window_and_pass_the_layers_above():
    model, backbone = full("layers=window", "layers.bottom=2", "layers.top=3", "layers.head=4")
    inputs: list[bool] = []
    for layer in backbone.anatomy.get_layers(model):
        layer.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].requires_grad))
    model.train()
    model(**batch(), labels=LABELS).loss.backward()
    # The graph starts inside layer 2.
    assert inputs == [False, False, True, True]
    for name, parameter in model.named_parameters():
        wanted = backbone.anatomy.layer_number(name) in (2, 3) or backbone.anatomy.in_head(name)
        assert (parameter.grad is not None) == wanted, name


def test_the_whole_window_is_ordinary_fine_tuning_bit_for_bit():
    whole, _ = full()
    window, _ = full("layers=window", "layers.bottom=1", "layers.top=4")
    for model in (whole, window):
        torch.manual_seed(5)
        train(model)
    assert torch.equal(logits(whole), logits(window))


def test_adapters_with_zero_up_projection_leave_the_frozen_model():
    model, _ = adapted("houlsby", "roberta", "method.init=lora", "layers=top", "layers.k=2")
    torch.testing.assert_close(logits(model), logits(plain_model("roberta")), rtol=0, atol=1e-6)


def test_a_window_of_adapters_trains_its_norms_alone():
    model, backbone = adapted("houlsby", "bert", "layers=window", "layers.bottom=2", "layers.top=3", "layers.head=4")
    names = [name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad]
    assert {backbone.anatomy.layer_number(name) for name in names} == {2, 3, None}
    assert all(name.startswith("classifier.") for name in names if backbone.anatomy.layer_number(name) is None)


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "parallel", "prefix", "prefix_mlp", "fl_tuning", "coda"])
def test_every_method_keeps_to_its_window(method):
    model, backbone = adapted(method, "bert", "layers=window", "layers.bottom=2", "layers.top=3", "layers.head=4")
    names = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    layers = {backbone.anatomy.layer_number(name) for name in names if not backbone.anatomy.in_head(name)}
    # The network that computes prefixes sits in the first adapted layer, for all.
    assert layers == ({2} if method == "prefix_mlp" else {2, 3})
