"""The PEFT tuner of BitFit."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from petl_bench.methods.base import AnatomyTuner
from petl_bench.methods.bitfit.config import BitFitConfig
from petl_bench.methods.bitfit.layer import BitFitLayer


class BitFitModel(BaseTuner):
    """Trains biases (Ben Zaken et al., ACL 2022, arXiv 2106.10199, section 3).

    Args:
        model: The model to adapt.
        config: A `BitFitConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's contract)

    # PEFT hands each tuner its own config class.
    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: BitFitConfig, model_config: dict[str, Any]
    ) -> BitFitConfig:
        return peft_config

    def _prepare_model(self, peft_config: BitFitConfig, model: nn.Module) -> None:  # type: ignore[override]
        if peft_config.target_modules is None:
            # PEFT trains these whole in classifiers, some of them without saying so beforehand.
            heads = ("classifier", "score") if peft_config.task_type else ()
            saved_whole = (*(peft_config.modules_to_save or ()), *heads)
            peft_config.target_modules = {  # type: ignore[assignment]
                name for name in modules_with_bias(model) if not _within_any(name, saved_whole)
            }

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: BitFitConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, BitFitLayer):
            target.update_layer(adapter_name, peft_config.inference_mode)
            return
        if not isinstance(getattr(target, "bias", None), nn.Parameter):
            raise ValueError(f"{current_key} has no bias to train")
        layer = BitFitLayer(target, adapter_name, peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        setattr(parent, target_name, layer)

    # PEFT's own fails on heads without a `weight` of their own, such as RoBERTa's.
    _replace_module = AnatomyTuner._replace_module


def modules_with_bias(model: nn.Module) -> list[str]:
    """Names of the modules that own a bias, adapted ones included."""
    names = [name.rpartition(".")[0] for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    return list(dict.fromkeys(name.removesuffix(".base_layer") for name in names))


def _within_any(name: str, endings: tuple[str, ...]) -> bool:
    """Whether the module or one around it has such an ending, which is how PEFT finds what it trains whole."""
    parts = name.split(".")
    around = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(outer.endswith(endings) for outer in around) if endings else False
