"""Any method of the PEFT library, by the name of its type."""

from __future__ import annotations

import json
import re
import reprlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.methods.registry import AdaptContext, Method, register

if TYPE_CHECKING:
    from torch import nn

# The defaults of (IA)3 rescale keys, values and the second feed-forward projection; most other types adapt what LoRA
# adapts.
_IA3_ROLES = ("key", "value", "feed_forward_out")
_DEFAULT_ROLES = ("query", "value")


@dataclass
class PeftSettings:
    """A PEFT type and the arguments of its config class."""

    type: str = field(default="IA3", metadata={"help": "Name of the PEFT type, such as IA3, ADALORA or LOHA."})
    args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Arguments of the config class: +method.args.NAME=VALUE."}
    )


# Reads expressions and names, and matches each with each. A process of its own can be ended, which `re` cannot.
_MATCH = """
import json, re, sys
expressions, names = json.load(sys.stdin)
try:
    for compiled in map(re.compile, expressions):
        for name in names:
            compiled.match(name)
except (re.error, OverflowError, RecursionError) as error:
    sys.exit(str(error))
"""

_MATCH_SECONDS = 20.0

_PLAIN_NAME = re.compile(r"[\w.-]*")


def check_config(settings: Mapping[str, Any], modules: Iterable[str], where: str) -> None:
    """Refuses settings of a PEFT config that PEFT would follow without a check.

    They may come from elsewhere, with an adapter or a study. PEFT imports the package that Megatron's settings name,
    and matches names of modules by regular expressions, some of which would take longer than anybody waits.

    Args:
        settings: Of a PEFT config; it may be a part.
        modules: The names of the model's modules.
        where: What the settings are called in messages.

    Raises:
        RequestError: If they name a package, or hold an expression that is none or takes too long.
    """
    if settings.get("megatron_config"):
        raise RequestError(
            f"{where}: megatron_config imports a package by its name, which is not supported: remove it."
        )
    texts = {
        text for name, value in settings.items() if "modules" in name or "pattern" in name for text in _texts(value)
    }
    # Where PEFT adds something to an expression, it is this or less.
    expressions = [form for text in sorted(texts) if not _PLAIN_NAME.fullmatch(text)
                   for form in (rf"(?:{text})\Z", rf"(?:^|.*\.)(?:{text})(?:$|\..*)")]  # fmt: skip
    if not expressions:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH],
            input=json.dumps([expressions, list(modules)]),
            capture_output=True, text=True, timeout=_MATCH_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RequestError(
            f"{where}: matching the names of modules by {_shown(texts)} takes too long: name the modules themselves, "
            "or write it without repetitions inside of repetitions."
        ) from error
    if done.returncode:
        raise RequestError(f"{where}: {_shown(texts)} is no regular expression ({done.stderr.strip()}).")


def _texts(value: Any) -> list[str]:
    """The expressions that a setting holds: itself, the items of a list, the keys of a mapping."""
    return [item for item in ([value] if isinstance(value, str) else value or []) if isinstance(item, str)]


def _shown(texts: Iterable[str]) -> str:
    return " or ".join(reprlib.repr(text) for text in sorted(texts) if not _PLAIN_NAME.fullmatch(text))


def adapt(model: nn.Module, config: Any, context: AdaptContext) -> nn.Module:
    """Creates the config of the PEFT type and applies it; targets that the user does not name follow the anatomy table.

    Raises:
        RequestError: If the type or an argument is unknown, or if PEFT refuses them for this architecture.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from petl_bench.methods.base import with_adapter

    known = {str(peft_type.value): cls for peft_type, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if config.type.upper() not in known:
        raise unknown_choice("method.type", config.type, known)
    config_class = known[config.type.upper()]
    names = {known_field.name for known_field in fields(config_class)}
    for name in config.args:
        if name not in names:
            raise unknown_choice("method.args", name, names)
    check_config(config.args, (name for name, _ in model.named_modules()), "method.args")
    try:
        peft_config = config_class(**(_default_arguments(names, config.type, context) | config.args))
    except (TypeError, ValueError) as error:
        raise RequestError(f"method.args do not fit {config_class.__name__}: {error}") from error
    return with_adapter(model, peft_config, context.anatomy)


def _default_arguments(names: set[str], peft_type: str, context: AdaptContext) -> dict[str, Any]:
    """Arguments that follow from the architecture, the adapted layers and the length of the training.

    Args:
        names: Fields of the type's config class.
        peft_type: Name of the type.
        context: Of this run.

    Raises:
        RequestError: If the type cannot be limited to the adapted layers.
    """
    defaults: dict[str, Any] = {}
    pattern = context.anatomy.layer_pattern
    if "feedforward_modules" in names:
        defaults["target_modules"] = pattern(context.plan.adapted, _IA3_ROLES)
        defaults["feedforward_modules"] = pattern(context.plan.adapted, ("feed_forward_out",))
    elif "target_modules" in names:
        defaults["target_modules"] = pattern(context.plan.adapted, _DEFAULT_ROLES)
    elif not context.plan.everything:
        raise RequestError(f"method.type={peft_type} adapts no single layers: use layers=all.")
    if peft_type.upper() == "ADALORA":
        defaults["total_step"] = context.num_training_steps
    if "num_virtual_tokens" in names:
        defaults["num_virtual_tokens"] = 20
    return defaults


register(
    Method(
        name="peft",
        summary="any PEFT type by name: method.type=IA3, ADALORA, LOHA, ...",
        origin="PEFT",
        settings=PeftSettings,
        adapt="petl_bench.methods.peft:adapt",
    )
)
