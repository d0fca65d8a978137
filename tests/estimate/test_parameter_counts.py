"""Exact numbers of parameters on the meta device, compared with those that the dimensions of each model give."""

from __future__ import annotations

import functools

import pytest

from composed import composed
from petl_bench.backbones.anatomy import LayersConfig
from petl_bench.backbones.load import open_backbone
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext
from petl_bench.model import count_backbone, count_parameters

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


@functools.cache
def count(backbone: str, num_labels: int, *overrides: str):
    cfg = composed(f"backbone={backbone}", *overrides)
    opened = open_backbone(cfg.backbone, cfg.layers, weights=False)
    model = opened.build_model(num_labels, device="meta")
    in_head = opened.anatomy.in_head
    encoder = count_backbone(model, in_head)
    context = AdaptContext(opened.anatomy, opened.plan, num_training_steps=10)
    adapted = adapt(model, cfg.method, context)
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


# Without the head; "base" and "large" hold for BERT and RoBERTa alike.
METHOD_COUNTS = [
    (["method=houlsby", "method.bottleneck=8", "method.train_layernorm=false"], 313_536, 835_968),
    (["method=houlsby", "method.bottleneck=8"], 351_936, 936_320),
    (["method=houlsby"], 2_417_664, 6_444_032),
    (["method=houlsby", "method.train_layernorm=false"], 2_379_264, 6_343_680),
    (["method=houlsby", "method.bottleneck=256"], 9_500_160, 25_327_616),
    (["method=houlsby", "method.variant=pfeiffer", "method.bottleneck=48"], 894_528, None),
    (["method=fl_tuning", "method.units=64"], 1_189_632, 3_171_840),
    (["method=fl_tuning"], 2_960_256, 7_892_736),
    (["method=prefix"], 368_640, 983_040),
    (["method=prefix", "method.length=128"], 2_359_296, 6_291_456),
    (["method=prefix", "method.length=160"], 2_949_120, 7_864_320),
    (["method=prefix", "method.mlp_hidden=512"], 9_864_704, 25_760_256),
    # The last layer has no router; the plain parallel adapter has none at all.
    (["method=coda"], 1_198_848 - 768, 3_196_416 - 1024),
    (["method=coda", "method.reduction=1"], 1_198_848 - 12 * 768, 3_196_416 - 24 * 1024),
]


@pytest.mark.parametrize(("overrides", "base", "large"), METHOD_COUNTS, ids=lambda value: str(value))
def test_method_counts(overrides, base, large):
    # BERT and RoBERTa take turns in the two sizes.
    odd = [row[0] for row in METHOD_COUNTS].index(overrides) % 2
    for backbone in (("roberta_base", "bert_large"), ("bert_base", "roberta_large"))[odd]:
        expected = base if backbone.endswith("base") else large
        if expected is not None:
            counts = count(backbone, 2, *overrides)
            assert (counts.trainable_method, counts.trainable_head) == (expected, HEAD[backbone][2])


@pytest.mark.parametrize(("num_labels", "base", "large"), [(1, 579_457, 1_815_809), (2, 580_226, 1_816_834),
                                                           (3, 580_995, 1_817_859)])  # fmt: skip
def test_flat_counts(num_labels, base, large):
    counts = count("bert_base", num_labels, "method=flat")
    assert counts.trainable == base
    assert counts.trainable_head == 768 * num_labels + num_labels
    assert round(counts.trainable_share_of_backbone_percent, 2) == 0.53
    for backbone in ("bert_large", "roberta_large"):
        assert count(backbone, num_labels, "method=flat").trainable == large


@pytest.mark.parametrize(
    ("overrides", "trainable"),
    [
        (["method=head", "method.pooler=true"], 592_130),
        (["method=flat", "method.width=64"], 13 * (768 * 64 + 64) + 64 * 65 + 64 * 64 + 2 * (12 * 64**2 + 13 * 64)
                                             + 65 * 768 + 1_538),
        (["method=flat", "method.include_embeddings=false"], 580_226 - (768 * 48 + 48)),
        (["method=lst", "method.width=48"], 858_302),
        (["method=lst"], 13 * (768 * 96 + 96) + 12 * (12 * 96**2 + 13 * 96) + 12 + 97 * 768 + 1_538),
    ],
)  # fmt: skip
def test_side_network_counts(overrides, trainable):
    assert count("bert_base", 2, *overrides).trainable == trainable


XIE = ["method=houlsby", "method.bottleneck=256", "layers=window"]


@pytest.mark.parametrize(("k", "trainable"), [(1, 2_106_882), (2, 3_162_114), (6, 7_383_042), (12, 13_714_434)])
def test_adapter_tuning_of_a_window_trains_its_norms_alone(k, trainable):
    window = [f"layers.bottom={25 - k}", "layers.top=24"]
    assert count("roberta_large", 2, *XIE, *window, "method.train_layernorm=true").trainable == trainable


def test_top_k_and_prefix_of_the_same_depth_train_the_same_number():
    for backbone in ("bert_base", "roberta_large"):
        top = count(backbone, 2, "method=lora", "layers=top", "layers.k=5")
        prefix = count(backbone, 2, "method=lora", "layers=window", "layers.bottom=1", "layers.top=5")
        assert top.trainable == prefix.trainable


def test_chinese_backbones_have_the_papers_numbers():
    for name in ("bert_base_chinese", "roberta_wwm_ext_base"):
        full, fl_tuning = (count(name, 15, f"method={method}") for method in ("full", "fl_tuning"))
        prefix = count(name, 15, "method=prefix", "method.length=160")
        assert full.backbone == 102_267_648
        assert fl_tuning.trainable_method == 12 * (2 * 160 * 768 + 160 + 768) == 2_960_256
        assert prefix.trainable_method == 2 * 160 * 768 * 12 == 2_949_120
        assert fl_tuning.trainable_head == prefix.trainable_head == 15 * 769


def test_xlm_r_and_mpnet_have_the_numbers_of_their_checkpoints():
    """Those of the hub, 278,043,648 and 109,486,464, are with a pooler of 768 x 769, which no classifier has."""
    for name, number in (("xlm_r_base", 278_043_648), ("mpnet_base", 109_486_464)):
        counts = count(name, 2, "method=lora", "method.r=8")
        assert counts.backbone == number - 768 * 769
        assert counts.trainable_method == LORA_R8["roberta_base"]
        assert counts.trainable_head == HEAD["roberta_base"][2]
