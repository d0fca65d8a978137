"""BitFit as a PEFT tuner: modules whose bias is replaced by a trained copy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.func import functional_call

from petl_bench.backbones.anatomy import all_anatomies
from petl_bench.errors import RequestError
from petl_bench.methods.base import HEADS_KNOWN_TO_PEFT, AnatomyTuner, TunerConfig, train_head, with_adapter
from petl_bench.methods.registry import AdaptContext, MethodConfig


@dataclass
class BitFitConfig(TunerConfig):
    """Configuration of a `BitFitModel`.

    Args:
        target_modules: Modules whose bias is trained: a list of names or name endings, or a regular expression that
            must match the whole name. None: every module with a bias, except for `modules_to_save`.
        exclude_modules: Modules that are left out, in the same form.
        modules_to_save: Other modules that are trained and saved as a whole, such as a new head.
    """

    method = "bitfit"

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules whose bias is trained."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules that are left out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved as a whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]


def adapt(model: nn.Module, config: MethodConfig, context: AdaptContext) -> nn.Module:
    """Trains every bias of the backbone, or those of the adapted layers if the layer plan is narrower.

    Raises:
        RequestError: If the architecture has no biases.
    """
    anatomy, plan = context.anatomy, context.plan
    names = [
        name
        for name in modules_with_bias(model)
        if not anatomy.in_head(name) and (plan.everything or anatomy.layer_number(name) in plan.adapted)
    ]
    if not names:
        raise RequestError(f"method=bitfit does not fit {anatomy.model_type}: this architecture has no biases.")
    pattern = "|".join(re.escape(name) for name in names)
    return with_adapter(model, BitFitConfig(target_modules=pattern), anatomy)


class BitFitLayer(nn.Module, BaseTunerLayer):
    """Runs the wrapped module with the active adapter's bias in place of its own.

    The copy starts at the pretrained bias, so the model is unchanged at the start. Works for every module that keeps
    its bias in `bias`: linear layers and norms alike.
    """

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, inference_mode: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._pretrained_bias: torch.Tensor | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, inference_mode)

    def update_layer(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Adds the bias of another adapter."""
        self.bitfit_bias[adapter_name] = nn.Parameter(self._base_bias.detach().clone())
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def _base_bias(self) -> nn.Parameter:
        return cast("nn.Parameter", self.get_base_layer().bias)

    def _bias_of(self, adapters: list[str]) -> torch.Tensor | None:
        """The bias with these adapters active: one replaces the pretrained one, several add their changes to it."""
        biases = [self.bitfit_bias[name] for name in adapters if name in self.bitfit_bias]
        if len(biases) <= 1:
            return biases[0] if biases else None
        pretrained = self._base_bias if self._pretrained_bias is None else self._pretrained_bias
        return pretrained + sum(bias - pretrained for bias in biases)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Writes the trained bias into the wrapped module.

        Raises:
            ValueError: With `safe_merge`, if the trained bias is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.bitfit_bias]
        bias = self._bias_of([*self.merged_adapters, *names])
        if not names or bias is None:
            return
        if safe_merge and not torch.isfinite(bias).all():
            raise ValueError(f"The bias of the adapters {names} is not finite.")
        base_bias = self._base_bias
        if self._pretrained_bias is None:
            self._pretrained_bias = base_bias.detach().clone()
        base_bias.data = bias.detach().clone().to(base_bias.dtype)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Puts the pretrained bias back."""
        if self._pretrained_bias is not None:
            # The model may have moved in between.
            self._base_bias.data = self._pretrained_bias.to(self._base_bias.device, self._base_bias.dtype)
            self._pretrained_bias = None
            self.merged_adapters.clear()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The wrapped module's output, with its shape."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        bias = None if self.disable_adapters or self.merged else self._bias_of(self.active_adapters)
        if bias is None:
            return self.base_layer(x, *args, **kwargs)
        # The adapter may be kept in higher precision than the model.
        return functional_call(self.base_layer, {"bias": bias.to(self._base_bias.dtype)}, (x, *args), kwargs)


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
        # BitFit needs no anatomy otherwise, and accepts architectures that are not in the table.
        if (anatomy := all_anatomies().get(model_config.get("model_type", ""))) is not None:
            train_head(peft_config, self.model, anatomy)
        return peft_config

    def _prepare_model(self, peft_config: BitFitConfig, model: nn.Module) -> None:  # type: ignore[override]
        if peft_config.target_modules is None:
            # PEFT trains these modules as a whole in classifiers, some of them without listing them beforehand.
            heads = HEADS_KNOWN_TO_PEFT if peft_config.task_type else ()
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

    # PEFT's own method fails for heads without their own `weight`, such as RoBERTa's.
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
