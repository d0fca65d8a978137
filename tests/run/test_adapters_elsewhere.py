"""Adapters of finished runs on a backbone that somebody else has loaded, layers above the head's included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from behaviour.matrix import ARCHITECTURES, METHODS, logits, opened, plain_model, train
from petl_bench.errors import RequestError
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext
from petl_bench.model import load_adapter, save_trained
from petl_bench.records.store import ADAPTER_FOLDER, RunFolder

# The head reads layer 2 of 4.
LOWER_HALF = ("layers=window", "layers.bottom=1", "layers.top=2")
KINDS = ("lora", "ia3", "head", "bitfit", "houlsby", "prefix", "fl_tuning", "coda", "flat", "lst")
PAIRS = [
    (method, architecture)
    for method in KINDS
    for architecture in (ARCHITECTURES if method in ("lora", "head", "houlsby") else ("bert", "modernbert"))
    if architecture not in METHODS[method].not_on
]


def kept(method: str, architecture: str, folder: Path, *layers: str) -> tuple[Path, torch.Tensor]:
    """The adapter that a run leaves, trained on the lower layers of `plain_model`, and its model's outputs."""
    cfg, backbone = opened(architecture, *METHODS[method].overrides, *layers)
    base = backbone.build_model(2)
    base.load_state_dict(plain_model(architecture).state_dict(), strict=False)
    torch.manual_seed(1)
    model = adapt(base, cfg.method, AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=1000))
    train(model)
    save_trained(RunFolder(folder), model, backbone, card=str)
    return folder / ADAPTER_FOLDER, logits(model)


@pytest.mark.parametrize(("method", "architecture"), PAIRS)
def test_an_adapter_below_the_top_is_right_on_the_whole_base_or_refused(method, architecture, tmp_path):
    folder, expected = kept(method, architecture, tmp_path, *LOWER_HALF)
    with pytest.raises(
        ValueError, match=r"SEQ_CLS on the first 2 layers: load it with petl_bench\.model\.load_adapter"
    ):
        PeftModel.from_pretrained(plain_model(architecture), folder)
    loaded = load_adapter(plain_model(architecture), folder).eval()
    assert torch.equal(logits(loaded), expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    again = load_adapter(plain_model(architecture, *LOWER_HALF), folder, is_trainable=True)
    assert any(parameter.requires_grad for parameter in again.parameters())
    # What it is saved as from now on is for the shortened base that it has.
    assert again.peft_config["default"].task_type == "SEQ_CLS"


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_it_is_no_second_adapter_of_the_whole_base(method, tmp_path):
    whole, expected = kept(method, "bert", tmp_path / "whole")
    folder, _ = kept(method, "bert", tmp_path / "lower", *LOWER_HALF)
    model = load_adapter(plain_model("bert"), whole).eval()
    assert torch.equal(logits(model), expected)
    with pytest.raises(ValueError, match="first 2 layers"):
        model.load_adapter(str(folder), "second")
    assert torch.equal(logits(model), expected)


def test_a_base_with_too_few_layers_is_refused(tmp_path):
    folder, _ = kept("lora", "bert", tmp_path, "layers=window", "layers.bottom=1", "layers.top=3")
    with pytest.raises(RequestError, match="first 3 layers of its base, but this one has 2"):
        load_adapter(plain_model("bert", *LOWER_HALF), folder)


@pytest.mark.parametrize("layers", [(), ("layers=top", "layers.k=2")])
def test_an_adapter_with_its_head_at_the_top_is_a_plain_one(layers, tmp_path):
    folder, expected = kept("lora", "bert", tmp_path, *layers)
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    assert torch.equal(logits(PeftModel.from_pretrained(plain_model("bert"), folder).eval()), expected)


def test_a_folder_without_an_adapter_is_told(tmp_path):
    with pytest.raises(RequestError, match=r"holds no adapter: adapter_config\.json is missing"):
        load_adapter(plain_model("bert"), tmp_path)
