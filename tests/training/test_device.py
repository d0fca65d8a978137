"""Where a run computes: what `auto` means, and which layers are compiled."""

from __future__ import annotations

import pytest
import torch

from petl_bench.config import resolved
from petl_bench.errors import RequestError
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.training import TrainConfig
from petl_bench.training.device import compile_layers, make_accelerator, resolved_precision


def test_auto_is_fp32_without_a_gpu_and_bf16_on_one_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolved_precision(TrainConfig()) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_it, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it, **_: has_it)
        assert resolved_precision(TrainConfig()) == precision
    assert resolved_precision(TrainConfig(device="cpu")) == "fp32"
    assert resolved_precision(TrainConfig(precision="fp16")) == "fp16"


def test_a_gpu_that_only_emulates_bf16_is_refused_unless_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(RequestError, match=r"train\.precision=bf16.*train\.emulate_bf16=true"):
        make_accelerator(TrainConfig(precision="bf16"))
    monkeypatch.setattr("accelerate.Accelerator", lambda **options: options)
    assert make_accelerator(TrainConfig(precision="bf16", emulate_bf16=True))["mixed_precision"] == "bf16"


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr("petl_bench.config.gpu_may_be_there", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_run_is_known_by_what_auto_came_to(tiny, without_gpu):
    assert identify(tiny()).key == identify(tiny("train.precision=fp32")).key
    assert identify(tiny()).config["train"]["precision"] == "fp32"
    assert resolved(tiny("train.precision=bf16")).train.precision == "bf16"
    on_cpu = identify(tiny("train.device=cpu"))
    assert (identify(tiny()).key, identify(tiny()).config) == (on_cpu.key, on_cpu.config)
    assert on_cpu.config["train"]["device"] == "cpu"


def test_the_same_settings_on_a_gpu_are_another_run(tiny, without_gpu, monkeypatch):
    fp32 = "train.precision=fp32"
    on_cpu = identify(tiny(fp32)).key
    monkeypatch.setattr("petl_bench.config.gpu_may_be_there", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert identify(tiny(fp32)).config["train"]["device"] == "cuda"
    assert identify(tiny(fp32)).key == identify(tiny(fp32, "train.device=cuda")).key != on_cpu
    assert identify(tiny(fp32, "train.device=cpu")).key == on_cpu


def test_only_layers_above_the_frozen_ones_are_compiled_and_results_agree(tiny):
    options = ["layers=top", "layers.k=1", "train.epochs=2"]
    plain = run(tiny(*options))
    with torch.compiler.set_stance("force_eager"):
        compiled = run(tiny(*options, "train.compile=true"))
    assert compiled.run_key != plain.run_key
    assert compiled.history[0].train_loss == pytest.approx(plain.history[0].train_loss, rel=1e-4)

    from petl_bench.backbones.load import open_backbone

    cfg = tiny("backbone.architecture.num_hidden_layers=4")
    backbone = open_backbone(cfg.backbone, cfg.layers)
    model = backbone.build_model(2)
    compile_layers(model, backbone.anatomy, num_frozen=3)
    layers = backbone.anatomy.get_layers(model)
    assert [layer._compiled_call_impl is not None for layer in layers] == [False, False, False, True]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.cache=ram", "auto, device, disk, memory, off"),
        ("train.cache_memory=lots", "train.cache_memory=lots"),
        ("train.cache_disk=-1GiB", "train.cache_disk"),
        ("train.precision=int8", "auto, bf16, fp16, fp32"),
    ],
)
def test_wrong_settings_are_named(override, message, tiny):
    with pytest.raises(RequestError, match=message):
        tiny(override)
