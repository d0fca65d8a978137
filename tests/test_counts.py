"""Exact parameter counts on the meta device, from the architectures' dimensions alone (shared acceptance figures)."""

from __future__ import annotations

import pytest

from petl_bench.backbones.config import LayersConfig
from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.measure.params import count_backbone, count_parameters
from petl_bench.methods.context import AdaptContext
from petl_bench.methods.registry import get_method

ENCODER = {
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "roberta_base": 124_055_040,
    "roberta_large": 354_310_144,
}
HEAD = {  # by number of labels
    "bert_base": {1: 769, 2: 1_538, 3: 2_307},
    "bert_large": {1: 1_025, 2: 2_050, 3: 3_075},
    "roberta_base": {1: 591_361, 2: 592_130, 3: 592_899},
    "roberta_large": {1: 1_050_625, 2: 1_051_650, 3: 1_052_675},
}
FULL_TWO_LABELS = {
    "bert_base": 109_483_778,
    "bert_large": 335_143_938,
    "roberta_base": 124_647_170,
    "roberta_large": 355_361_794,
}
LORA_R8 = {"bert_base": 294_912, "bert_large": 786_432, "roberta_base": 294_912, "roberta_large": 786_432}
# Biases of the encoder: 11 d a layer, d for the embedding norm, d for the pooler that only BERT has.
BITFIT = {
    "bert_base": 11 * 768 * 12 + 2 * 768,
    "bert_large": 11 * 1024 * 24 + 2 * 1024,
    "roberta_base": 11 * 768 * 12 + 768,
    "roberta_large": 11 * 1024 * 24 + 1024,
}


def count(backbone: str, num_labels: int, *overrides: str):
    cfg = load_config([f"backbone={backbone}", *overrides])
    opened = open_backbone(cfg.backbone, cfg.layers, weights=False)
    model = opened.build_model(num_labels, device="meta")
    in_head = opened.anatomy.in_head
    encoder = count_backbone(model, in_head)
    context = AdaptContext(opened.anatomy, opened.plan, num_training_steps=10)
    adapted = get_method(cfg.method.name).load_adapt()(model, cfg.method, context)
    return count_parameters(adapted, encoder, in_head)


@pytest.mark.parametrize("backbone", ENCODER)
@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_full_and_head(backbone, num_labels):
    full = count(backbone, num_labels, "method=full")
    head = count(backbone, num_labels, "method=head")
    assert full.backbone == head.backbone == ENCODER[backbone]
    assert full.trainable == full.total == ENCODER[backbone] + HEAD[backbone][num_labels]
    assert (head.trainable, head.trainable_method) == (HEAD[backbone][num_labels], 0)
    assert head.total == full.total
    if num_labels == 2:
        assert full.trainable == FULL_TWO_LABELS[backbone]


@pytest.mark.parametrize("backbone", ENCODER)
def test_lora_and_bitfit(backbone):
    head = HEAD[backbone][2]
    eight, sixteen = count(backbone, 2, "method=lora"), count(backbone, 2, "method=lora", "method.r=16")
    assert (eight.trainable_method, eight.trainable_head) == (LORA_R8[backbone], head)
    assert sixteen.trainable_method == 2 * LORA_R8[backbone]
    assert eight.total == FULL_TWO_LABELS[backbone] + LORA_R8[backbone]
    assert BITFIT["bert_base"] == 102_912
    bitfit = count(backbone, 2, "method=bitfit")
    assert (bitfit.trainable_method, bitfit.trainable_head) == (BITFIT[backbone], head)


@pytest.mark.parametrize(
    ("k", "trainable"),
    [(1, 13_647_874), (2, 26_244_098), (6, 76_628_994), (12, 152_206_338), (18, 227_783_682)],
)
def test_full_fine_tuning_of_the_top_layers(k, trainable):
    counts = count("roberta_large", 2, "method=full", "layers=top", f"layers.k={k}")
    assert counts.trainable == trainable


@pytest.mark.parametrize(("head", "total"), [(12, 204_207_106), (14, 229_399_554), (18, 279_784_450)])
def test_layers_above_the_head_are_not_built(head, total):
    layers = ["layers=window", "layers.bottom=1", f"layers.top={head}"]
    assert count("roberta_large", 2, "method=full", *layers).total == total


def test_a_share_names_its_denominator():
    counts = count("bert_base", 2, "method=head")
    assert counts.trainable_share_of_backbone_percent == pytest.approx(100 * 1_538 / 109_482_240)


def test_lora_in_a_window_counts_only_its_layers():
    counts = count("bert_base", 2, "method=lora", "layers=window", "layers.bottom=3", "layers.top=4")
    assert counts.trainable_method == LORA_R8["bert_base"] * 2 // 12


def test_layers_config_defaults_to_all():
    assert LayersConfig().name == "all"
