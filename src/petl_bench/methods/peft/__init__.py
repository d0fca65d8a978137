"""Any method of the PEFT library, by the name of its type; and what PEFT's tuners need around a training."""

from __future__ import annotations

import copy
import json
import logging
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

    from petl_bench.records.schema import HistoryEntry

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


# Scores of AdaLoRA's rank allocator, each a dict of tensors by parameter name.
_ALLOCATOR_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")

_log = logging.getLogger(__name__)


class RankAllocation:
    """Callback of the training loop for tuners that reallocate ranks, such as AdaLoRA; does nothing for the others.

    PEFT keeps the ranks in the adapter's config and the scores they follow from in its allocator, so neither is among
    the model's parameters: a checkpoint holds them as extra state.

    Args:
        model: The adapted model, unwrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        tuner = getattr(model, "base_model", None)
        self._reallocate = getattr(tuner, "update_and_allocate", None)
        self._allocator = getattr(tuner, "rankallocator", None)
        self._best_ranks: dict[str, Any] = {}

    def on_resume(self, progress: Any) -> None:
        """Does nothing: `load_state_dict` has restored the ranks."""

    def on_update(self, step: int) -> None:
        """Lets the tuner reallocate its ranks; it reads the gradients."""
        if self._reallocate is not None:
            self._reallocate(step)

    def on_warm(self) -> None:
        """Does nothing."""

    def on_evaluation(self, entry: HistoryEntry, is_best: bool) -> None:
        """Keeps the ranks that belong to the best weights."""
        if is_best:
            self._best_ranks = self._ranks_in_use()

    def finish(self, selection: str) -> None:
        """Sets the ranks that the adapter is saved with.

        Args:
            selection: `best` or `last`: whose ranks they are.
        """
        self._set_ranks(self._best_ranks if selection == "best" else self._ranks_in_use())

    def state_dict(self) -> dict[str, Any]:
        """Returns the ranks, the best ranks, and the allocator's scores."""
        scores = (
            {name: getattr(self._allocator, name) for name in _ALLOCATOR_SCORES} if self._allocator is not None else {}
        )
        return {"ranks": self._ranks(), "best_ranks": self._best_ranks, "scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._set_ranks(state["ranks"])
        self._best_ranks = state["best_ranks"]
        if not state["scores"]:
            return
        parameters = dict(self._model.base_model.model.named_parameters())  # type: ignore[union-attr]
        for name, scores in state["scores"].items():
            on_device = {parameter: tensor.to(parameters[parameter].device) for parameter, tensor in scores.items()}
            setattr(self._allocator, name, on_device)

    def _ranks(self) -> dict[str, Any]:
        configs = getattr(self._model, "peft_config", {})
        return {
            name: copy.deepcopy(config.rank_pattern)
            for name, config in configs.items()
            if hasattr(config, "rank_pattern")
        }

    def _ranks_in_use(self) -> dict[str, Any]:
        """The ranks whose singular values are not zero.

        Between two reallocations the optimizer moves the values that the last one set to zero, and the model computes
        with them: an adapter without them would be another model.
        """
        found = self._ranks()
        for pattern in found.values():
            for name in pattern or {}:
                singular_values = self._model.base_model.model.get_parameter(name)  # type: ignore[union-attr, operator]
                pattern[name] = (singular_values.detach() != 0).view(-1).tolist()
        return found

    def _set_ranks(self, ranks: dict[str, Any]) -> None:
        for name, pattern in ranks.items():
            self._model.peft_config[name].rank_pattern = pattern  # type: ignore[union-attr, index]


def merged(model: nn.Module) -> tuple[nn.Module, bool]:
    """Merges the adapter into the weights if the method can.

    Args:
        model: The adapted model; changed in place.

    Returns:
        The plain model and True; or the model as it was, which computes the same as before, and False.
    """
    merge = getattr(model, "merge_and_unload", None)
    if merge is None:
        return model, False
    try:
        plain: nn.Module = merge()
    except (ValueError, NotImplementedError, AttributeError) as error:
        _log.debug("not merged: %s", error)
        return model, False
    return plain, True
