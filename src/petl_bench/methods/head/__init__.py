"""Linear probe: only the head is trained, on top of the frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RequestError
from petl_bench.methods.registry import AdaptContext, Method, register
from petl_bench.settings import setting

if TYPE_CHECKING:
    from torch import nn


@dataclass
class HeadSettings:
    """Options of the linear probe."""

    pooler: bool = setting(
        False,
        "Also train the pretrained dense layer below the classifier. It is outside the head in BERT only; "
        "in the other architectures it is a part of the head and trained anyway.",
    )


def adapt(model: nn.Module, config: Any, context: AdaptContext) -> nn.Module:
    """Trains the head, and the pooler if asked for.

    The result is a LoRA adapter without targets, so that plain PEFT can save and load it.

    Raises:
        RequestError: If the pooler is asked for and the model is a tagger, which has none.
    """
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    from petl_bench.methods.base import with_adapter

    if config.pooler and context.anatomy.is_tagger:
        raise RequestError("method.pooler=true trains the pooler, which a tagger does not have: leave it out.")
    pooler = context.anatomy.pooler if config.pooler else None
    lora = LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=[pooler] if pooler else None)
    return with_adapter(model, lora, context.anatomy)


register(
    Method(
        name="head",
        summary="the head alone (linear probe), or with the pooler below it",
        origin="PEFT",
        settings=HeadSettings,
        adapt="petl_bench.methods.head:adapt",
    )
)
