"""Computes references.json with the library `adapters` 1.3.0, which does not install beside transformers 5.

In an environment of its own, on the CPU, in float64:

    python -m venv reference && reference/bin/pip install torch==2.13.0 adapters==1.3.0
    reference/bin/python tests/references/make_references.py > tests/references/references.json

Weights of the models, of the adapters and the inputs come from names by `values.py`; tests/methods/test_parity.py puts
the same into our methods and compares the last hidden states.
"""

from __future__ import annotations

import json
import sys

import adapters
import numpy as np
import torch
import transformers
from adapters import DoubleSeqBnConfig, ParBnConfig, PrefixTuningConfig, SeqBnConfig
from transformers import AutoConfig, AutoModel
from values import BOTTLENECK, CONFIGS, HEADS, HIDDEN, IDS, LAYERS, MASK, PREFIX, values

REDUCTION = HIDDEN / BOTTLENECK
CASES = {
    "houlsby": DoubleSeqBnConfig(reduction_factor=REDUCTION, non_linearity="gelu"),
    "pfeiffer": SeqBnConfig(reduction_factor=REDUCTION, non_linearity="relu"),
    "parallel": ParBnConfig(reduction_factor=REDUCTION, non_linearity="relu", scaling=4.0),
    "fl_tuning": ParBnConfig(reduction_factor=REDUCTION, non_linearity="gelu", scaling=1.0),
    "prefix": PrefixTuningConfig(flat=True, prefix_length=PREFIX, dropout=0.0),
}


def fill(parameter: torch.nn.Parameter, key: str) -> None:
    parameter.data = torch.from_numpy(np.asarray(values(key, tuple(parameter.shape)))).double()


def fill_adapters(model: torch.nn.Module, case: str) -> None:
    """By layer, then attention before feed-forward, which is the order of the module names."""
    if case == "prefix":
        flat = [p for name, p in model.named_parameters() if "control_trans" in name]
        assert len(flat) == 1, [name for name, _ in model.named_parameters()]
        # One matrix: for every layer keys, then values, each split into heads.
        width = HIDDEN // HEADS
        blocks = np.stack(
            [
                values(f"layer{layer}.prefix.{part}", (PREFIX, HIDDEN)).reshape(PREFIX, HEADS, width)
                for layer in range(LAYERS)
                for part in ("key", "value")
            ],
            axis=1,
        )
        flat[0].data = torch.from_numpy(blocks.reshape(tuple(flat[0].shape))).double()
        return
    modules = [m for _, m in model.named_modules() if type(m).__name__ in ("Adapter", "ParallelAdapter")]
    per_layer = len(modules) // LAYERS
    assert per_layer == (2 if case == "houlsby" else 1), len(modules)
    for index, module in enumerate(modules):
        layer, place = divmod(index, per_layer)
        for part, linear in (("down", module.adapter_down[0]), ("up", module.adapter_up)):
            for kind in ("weight", "bias"):
                fill(getattr(linear, kind), f"layer{layer}.adapter{place}.{part}.{kind}")


def main() -> None:
    found: dict[str, dict[str, object]] = {}
    for architecture, shape in CONFIGS.items():
        for case, settings in CASES.items():
            config = AutoConfig.for_model(architecture, **shape)
            config._attn_implementation = "eager"
            model = AutoModel.from_config(config)
            for name, parameter in model.named_parameters():
                fill(parameter, name)
            adapters.init(model)
            model.add_adapter("a", config=settings)
            model.set_active_adapters("a")
            assert model.active_adapters is not None
            fill_adapters(model, case)
            model.double().eval()
            with torch.no_grad():
                output = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state
            rows = [state[: sum(mask)].flatten().tolist() for state, mask in zip(output, MASK, strict=True)]
            found.setdefault(architecture, {})[case] = [[round(value, 10) for value in row] for row in rows]
    versions = {"adapters": adapters.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    json.dump({"versions": versions, "last_hidden_states": found}, sys.stdout)


if __name__ == "__main__":
    main()
