"""Our methods against the library `adapters` on the same weights and inputs (tests/references/make_references.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoConfig, AutoModel

from petl_bench.methods.fl_tuning.model import FlTuningConfig
from petl_bench.methods.houlsby.model import HoulsbyConfig
from petl_bench.methods.prefix.model import PrefixConfig
from references.values import BOTTLENECK, CONFIGS, HIDDEN, IDS, MASK, PREFIX, values

STORED = json.loads((Path(__file__).parents[1] / "references" / "references.json").read_text())["last_hidden_states"]


def houlsby(**settings) -> HoulsbyConfig:
    return HoulsbyConfig(bottleneck=BOTTLENECK, train_layernorm=False, **settings)


# The settings under which the two libraries must agree.
CASES: dict[str, PeftConfig] = {
    "houlsby": houlsby(activation="gelu"),
    "pfeiffer": houlsby(variant="pfeiffer", activation="relu"),
    "parallel": houlsby(variant="parallel", activation="relu", scale=4.0),
    "fl_tuning": FlTuningConfig(units=BOTTLENECK),
    "prefix": PrefixConfig(length=PREFIX, dropout=0.0),
}


def fill(parameter: torch.nn.Parameter, key: str) -> None:
    parameter.data = torch.from_numpy(np.asarray(values(key, tuple(parameter.shape)))).double()


def key_of(name: str, case: str) -> str:
    """What make_references.py calls the same adapter parameter; names come in the order of the layers."""
    layer = name.split(".layer.")[1].split(".")[0]
    kind = name.rpartition(".")[2]
    if case == "prefix":
        return f"layer{layer}.prefix.{'key' if 'prefix_key' in name else 'value'}"
    if case == "fl_tuning":
        part = "down" if "intermediate" in name or "lin1" in name else "up"
        return f"layer{layer}.adapter0.{part}.{kind}"
    place = 0 if case != "houlsby" or ".attention." in name else 1
    return f"layer{layer}.adapter{place}.{name.split('.')[-2]}.{kind}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_last_hidden_states_are_the_references(architecture, case, attention):
    if architecture == "deberta-v2" and attention == "sdpa":
        pytest.skip("transformers computes DeBERTa's attention in one way only")
    config = AutoConfig.for_model(architecture, **CONFIGS[architecture])
    plain = AutoModel.from_config(config, attn_implementation=attention)
    for name, parameter in plain.named_parameters():
        fill(parameter, name)
    model = get_peft_model(plain, CASES[case]).eval()
    CASES[case].target_modules = None
    filled = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fill(parameter, key_of(name, case))
            filled += parameter.numel()
    assert filled >= 2 * 2 * PREFIX * HIDDEN
    with torch.no_grad():
        states = model.double()(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state
    for state, mask, stored in zip(states, MASK, STORED[architecture][case], strict=True):
        torch.testing.assert_close(
            state[: sum(mask)].flatten(), torch.tensor(stored, dtype=torch.float64), rtol=0, atol=1e-7
        )
