"""Any method of the PEFT library, by its type name."""

from dataclasses import dataclass, field
from typing import Any

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class PeftMethodConfig(MethodConfig):
    """A PEFT type and the arguments of its config class."""

    name: str = "peft"
    type: str = "IA3"
    args: dict[str, Any] = field(default_factory=dict)


register(
    Method(
        name="peft",
        summary="any PEFT type by name: method.type=IA3, ADALORA, LOHA, ...",
        origin="PEFT",
        config=PeftMethodConfig,
        adapt="petl_bench.methods.peft.adapt:adapt",
        ships_yaml=True,
    )
)
