"""Puts a PEFT config onto a sequence classifier, the head trained and saved with it."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.backbones.config import LayerPlan
from petl_bench.errors import RequestError
from petl_bench.methods.config import MethodConfig

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn

AnyPeftConfig = TypeVar("AnyPeftConfig", bound="PeftConfig")

# Heads that PEFT trains and saves of its own accord in a sequence classifier.
_PEFTS_GUESS = ("classifier", "score")


def build_config(config_class: type[AnyPeftConfig], settings: MethodConfig, **further: Any) -> AnyPeftConfig:
    """Builds a PEFT config from the method's settings of the same names.

    Raises:
        RequestError: where a setting is outside its range.
    """
    known = {field.name for field in fields(config_class)}
    shared = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name in known}
    try:
        return config_class(**shared, **further)
    except ValueError as error:
        raise RequestError(f"method={settings.name}: {error}.") from error


def with_adapter(model: nn.Module, config: PeftConfig, anatomy: Anatomy) -> PeftModel:
    """Returns the PEFT model: backbone frozen, the config's adapter and the head trained.

    Raises:
        RequestError: where the tuner refuses the combination.
    """
    from peft import TaskType, get_peft_model

    config.task_type = TaskType.SEQ_CLS
    # Tuners without `modules_to_save` bring a head of their own.
    if hasattr(config, "modules_to_save"):
        # By architecture: PEFT's own guess leaves DeBERTa's pooler and ModernBERT's dense layer frozen.
        further = [module for module in anatomy.head if module not in _PEFTS_GUESS]
        config.modules_to_save = [*(config.modules_to_save or ()), *further] or None
    try:
        return get_peft_model(model, config)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(
            f"PEFT cannot apply {str(config.peft_type).rpartition('.')[2]} to the architecture {anatomy.model_type}: "
            f"{error}"
        ) from error


def whole_encoder(settings: MethodConfig, plan: LayerPlan) -> None:
    """Checks that a method which reads all layers is not asked to adapt some.

    Raises:
        RequestError: where it is.
    """
    if (plan.bottom, plan.top) != (1, plan.head):
        raise RequestError(
            f"method={settings.name} reads every layer up to the head's and adapts none by itself: use layers=all, or "
            "layers=window layers.bottom=1 to read fewer."
        )
