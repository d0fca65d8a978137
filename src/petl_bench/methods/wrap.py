"""Puts a PEFT config onto a sequence classifier, the head trained and saved with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.errors import RequestError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn


# Heads that PEFT trains and saves of its own accord in a sequence classifier.
_PEFTS_GUESS = ("classifier", "score")


def with_adapter(model: nn.Module, config: PeftConfig, anatomy: Anatomy) -> PeftModel:
    """Returns the PEFT model: backbone frozen, the config's adapter and the head trained.

    Raises:
        RequestError: where PEFT refuses the combination.
    """
    from peft import TaskType, get_peft_model

    config.task_type = TaskType.SEQ_CLS
    # By architecture: PEFT's own guess leaves DeBERTa's pooler and ModernBERT's dense layer frozen.
    further = [module for module in anatomy.head if module not in _PEFTS_GUESS]
    config.modules_to_save = further or None  # type: ignore[attr-defined]
    try:
        return get_peft_model(model, config)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(
            f"PEFT cannot apply {config.peft_type} to the architecture {anatomy.model_type}: {error}"
        ) from error
