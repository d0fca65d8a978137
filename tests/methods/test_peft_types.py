"""Every type of the installed PEFT does on small models what docs/methods/peft.md says, or is refused in a sentence."""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate.utils import set_seed

from petl_bench.backbones.anatomy import PROJECTION_ROLES
from petl_bench.backbones.load import open_backbone
from petl_bench.catalog import TINY_BACKBONES
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.methods.base import adapt
from petl_bench.methods.peft import check_config
from petl_bench.methods.registry import AdaptContext
from petl_bench.model import build_adapted, load_adapter, load_trained, save_adapter
from petl_bench.records.store import RunFolder
from petl_bench.testing import train

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("peft_types", ROOT / "scripts" / "peft_types.py")
peft_types = importlib.util.module_from_spec(_spec)
sys.modules["peft_types"] = peft_types  # dataclasses look there
_spec.loader.exec_module(peft_types)

ARCHITECTURES = list(TINY_BACKBONES)
TYPES = peft_types.types()
open_small = functools.cache(peft_types.open_small)


def documented() -> dict[str, list[str]]:
    lines = (ROOT / "docs" / "methods" / "peft.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    rows = [row for row in rows if len(row) == 2 + len(ARCHITECTURES)]
    assert rows[0] == ["type", "trained in", *ARCHITECTURES]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_documented_types_are_those_of_the_installed_peft():
    assert list(documented()) == TYPES, "make the table anew with scripts/peft_types.py"


# One architecture for each type, all in turn; the script tries every pair.
@pytest.mark.parametrize(("number", "peft_type"), list(enumerate(TYPES)), ids=TYPES)
def test_a_type_trains_what_is_documented_and_loads_as_it_was(number, peft_type, tmp_path):
    architecture = ARCHITECTURES[number % len(ARCHITECTURES)]
    where, *counts = documented()[peft_type]
    expected = counts[ARCHITECTURES.index(architecture)]
    backbone = open_small(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if expected == "no":
            with pytest.raises(RequestError, match=rf"method\.type={peft_type} "):
                peft_types.adapted(peft_type, backbone)
            return
        model = peft_types.adapted(peft_type, backbone)
        train(model, steps=1)
        found = peft_types.trained(model, backbone.anatomy)
        assert peft_types.cell(found) == expected
        # ModernBERT's fused projection plays the roles of query, key and value at once.
        assert set(where.split(", ")) <= set(found.parts)

        model.save_pretrained(tmp_path, save_embedding_layers=False)
        torch.manual_seed(0)
        plain = backbone.build_model(2)
        torch.manual_seed(1)
        loaded = load_adapter(plain, tmp_path, is_trainable=True)
    ids = torch.arange(10, 50).reshape(4, 10)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, model.eval()(**batch).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ln_tuning_trains_every_norm_and_nothing_else(architecture):
    backbone = open_small(architecture)
    model = peft_types.adapted("LN_TUNING", backbone)
    torch.manual_seed(0)
    plain = backbone.build_model(2)
    norms = {
        f"{name}.{kind}"
        for name, module in plain.named_modules()
        if "Norm" in type(module).__name__ and not backbone.anatomy.in_head(name)
        for kind, _ in module.named_parameters(recurse=False)
    }
    trained = {
        name.removeprefix("base_model.model.").replace("ln_tuning_layers.default.", "")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not backbone.anatomy.in_head(name)
    }
    assert trained == norms
    assert len(norms) >= 2 * peft_types.LAYERS


def test_ln_tuning_of_some_layers_trains_their_norms_alone():
    cfg = load_config(["backbone=tiny_bert", "method=peft", "method.type=LN_TUNING", "layers=top", "layers.k=1"])
    backbone = open_backbone(cfg.backbone, cfg.layers)
    model = adapt(backbone.build_model(2), cfg.method, AdaptContext(backbone.anatomy, backbone.plan, 100))
    names = [name for name, one in model.named_parameters() if one.requires_grad and "ln_tuning" in name]
    assert len(names) == 4
    assert all("encoder.layer.3." in name for name in names)
    assert not any(backbone.anatomy.is_role(name, role) for name in names for role in PROJECTION_ROLES)


@pytest.mark.parametrize(
    ("peft_type", "size", "expected"), [("C3A", "block_size", 128), ("VBLORA", "vector_length", 128)]
)
def test_sizes_that_must_divide_the_width_do(peft_type, size, expected):
    # 384 is MiniLM's width, of which PEFT's 256 is no divisor.
    cfg = load_config(["backbone=tiny_bert", "backbone.architecture.hidden_size=384", "method=peft"])
    cfg.method.type = peft_type
    backbone = open_backbone(cfg.backbone, cfg.layers)
    model = adapt(backbone.build_model(2), cfg.method, AdaptContext(backbone.anatomy, backbone.plan, 100))
    assert getattr(model.peft_config["default"], size) == expected


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga"])
def test_a_lora_that_starts_from_rows_is_refused_and_not_started_otherwise(start):
    cfg = load_config(["method=peft", "method.type=LORA", f"+method.args.init_lora_weights={start}"])
    backbone = open_small("bert")
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=100)
    with pytest.raises(RequestError, match=f"init_lora_weights={start} wants rows"):
        adapt(backbone.build_model(2), cfg.method, context)


def test_virtual_tokens_count_for_the_longest_row():
    request = ["backbone=tiny_bert", "method=peft", "method.type=PROMPT_TUNING", "+method.args.num_virtual_tokens=8"]
    fits = load_config([*request, "task=smoke", "task.max_length=120"])
    backbone = open_backbone(fits.backbone, fits.layers)
    build_adapted(fits, backbone, ["a", "b"], 1)
    with pytest.raises(RequestError, match=r"task.max_length=121 and the 8 tokens .* task.max_length=120 or less"):
        build_adapted(load_config([*request, "task=smoke", "task.max_length=121"]), backbone, ["a", "b"], 1)


def test_a_stored_config_with_a_number_of_modules_is_no_expression():
    check_config({"num_transformer_submodules": 1, "modules_to_save": None}, ["encoder"], "the adapter")


def test_a_prompt_that_a_run_has_kept_is_loaded_with_its_head(tmp_path):
    cfg = load_config(["backbone=tiny_bert", "method=peft", "method.type=PROMPT_TUNING", "task=smoke"])
    backbone = open_backbone(cfg.backbone, cfg.layers)
    model, _ = build_adapted(cfg, backbone, ["a", "b"], 1)
    train(model, steps=1)
    save_adapter(RunFolder(tmp_path), model, backbone, "# A card")
    # The pretrained weights are random ones here, from the seed of the run.
    set_seed(cfg.train.seed)
    loaded = load_trained(RunFolder(tmp_path), backbone, ["a", "b"])
    assert {name for name, one in loaded.named_parameters() if one.requires_grad} == {
        name for name, one in model.named_parameters() if one.requires_grad
    }
    ids = torch.arange(10, 50).reshape(4, 10)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
