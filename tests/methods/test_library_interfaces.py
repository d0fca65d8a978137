"""Interfaces of PEFT and transformers that are not documented for our use; each failure says what to change here."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import BertConfig, BertModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from petl_bench.backbones.anatomy import all_anatomies
from petl_bench.backbones.load import attention_implementation, set_attention_implementation
from petl_bench.methods.prefix.model import biased_attention
from petl_bench.methods.registry import _add_peft_type


def test_pefts_enum_of_types_takes_new_members():
    _add_peft_type("OF_A_TEST")
    try:
        found = PeftType("OF_A_TEST")
        assert found is PeftType["OF_A_TEST"] is PeftType.OF_A_TEST, (
            "PeftType no longer finds added members: see _add_peft_type in methods/registry.py"
        )
        assert str(found.value) == "OF_A_TEST"
    finally:
        PeftType._member_names_.remove("OF_A_TEST")
        del PeftType._member_map_["OF_A_TEST"], PeftType._value2member_map_["OF_A_TEST"]
        type.__delattr__(PeftType, "OF_A_TEST")


def test_transformers_records_hidden_states_through_hooks_that_can_be_moved():
    output_capturing = importlib.import_module("transformers.utils.output_capturing")
    install = getattr(output_capturing, "maybe_install_capturing_hooks", None)
    assert install is not None, "transformers installs its capturing hooks elsewhere: see methods/base.py"
    model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8))
    install(model)
    hooks = model.encoder.layer[0]._forward_hooks.values()
    assert any(getattr(hook, "__module__", "") == install.__module__ for hook in hooks), (
        "transformers no longer hooks the layers themselves: see take_capture in methods/base.py"
    )


def test_attention_functions_can_be_registered_and_looked_up():
    assert "petl_bench_prefix" in ALL_ATTENTION_FUNCTIONS.valid_keys(), (
        "transformers' attention interface has changed: see methods/prefix/model.py"
    )


def test_a_config_names_its_attention_and_takes_another_name_unchecked():
    config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, attn_implementation="eager")
    assert attention_implementation(config) == "eager", "see attention_implementation in backbones/load.py"
    set_attention_implementation(config, "of_a_test")
    assert attention_implementation(config) == "of_a_test", "see set_attention_implementation in backbones/load.py"


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("_prepare_adapter_config", ["self", "peft_config", "model_config"]),
        ("_prepare_model", ["self", "peft_config", "model"]),
        (
            "_create_and_replace",
            ["self", "peft_config", "adapter_name", "target", "target_name", "parent", "current_key"],
        ),
        ("_replace_module", ["self", "parent", "child_name", "new_module", "child"]),
        ("_check_merge_allowed", ["self"]),
        ("_check_new_adapter_config", ["self", "config"]),
        ("_unload_and_optionally_merge", ["self", "merge", "progressbar", "safe_merge", "adapter_names"]),
        ("_remove_adapter_name_from_key", ["key", "adapter_name"]),
        (
            "_get_adapter_state_dict",
            ["model", "config", "adapter_name", "state_dict", "unwanted_adapter_names"],
        ),
        ("_remap_adapter_state_dict_for_load", ["model", "config", "adapter_name", "state_dict"]),
    ],
)
def test_pefts_tuner_has_the_methods_that_ours_override(name, parameters):
    found = [*inspect.signature(getattr(BaseTuner, name)).parameters]
    assert found[: len(parameters)] == parameters, (
        f"PEFT's BaseTuner.{name} has changed: see methods/base.py and prefix/"
    )


@pytest.mark.parametrize("model_type", [name for name in all_anatomies() if name not in ("deberta-v2", "mpnet")])
def test_every_architecture_has_its_eager_attention_next_to_its_attention_class(model_type):
    model_type = model_type.replace("-", "_")
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    assert callable(getattr(module, "eager_attention_forward", None)), (
        f"{model_type} has moved its eager attention: see attention_kernel in backbones/attention.py"
    )


def test_debertas_attention_is_the_one_that_prefixes_reimplement():
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

    expected = ["self", "hidden_states", "attention_mask", "output_attentions", "query_states", "relative_pos",
                "rel_embeddings"]  # fmt: skip
    assert list(inspect.signature(DisentangledSelfAttention.forward).parameters) == expected, (
        "DeBERTa's attention takes other arguments: see disentangled_attention in methods/prefix/model.py"
    )
    for name in ("transpose_for_scores", "disentangled_attention_bias"):
        assert hasattr(DisentangledSelfAttention, name), (
            f"DeBERTa's attention has no {name}: see methods/prefix/model.py"
        )


def test_mpnets_attention_is_the_one_that_prefixes_reimplement():
    from transformers import MPNetConfig
    from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

    config = MPNetConfig(hidden_size=8, num_attention_heads=2)
    torch.manual_seed(0)
    attention = MPNetSelfAttention(config).eval()
    attention.prefix_source = lambda: (torch.zeros(2, 0, 4),) * 2
    states, bias = torch.randn(3, 5, 8), torch.randn(3, 2, 5, 5)
    mask = torch.zeros(3, 1, 1, 5).masked_fill(torch.arange(5) > 3, torch.finfo(torch.float32).min)
    given = (states, mask, bias, True)
    for found, expected in zip(biased_attention(attention, *given), attention(*given), strict=True):
        torch.testing.assert_close(found, expected, msg="MPNet's attention has changed: see methods/prefix/model.py")


def test_peft_takes_an_adapter_without_targets():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    adapted = get_peft_model(model, LoraConfig(target_modules=DUMMY_TARGET_MODULES))
    assert not [name for name, one in adapted.named_parameters() if one.requires_grad], (
        "PEFT's placeholder for no targets now matches modules: see methods/head"
    )
