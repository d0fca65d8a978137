"""Any method of the PEFT library, by the name of its type; and what PEFT's tuners need around a training."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import re
import reprlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.methods.registry import AdaptContext, Method, register
from petl_bench.settings import setting

if TYPE_CHECKING:
    from torch import nn

    from petl_bench.records.schema import HistoryEntry

# Most types adapt what LoRA adapts; these adapt what their papers do.
_ROLES = {"IA3": ("key", "value", "feed_forward_out"), "BEFT": ("value",)}
_DEFAULT_ROLES = ("query", "value")

# Sizes that must divide the width of the model: PEFT's own default where it does.
_DIVISORS = {"C3A": "block_size", "ROAD": "group_size", "VBLORA": "vector_length"}

# Types whose tokens are keys and values of every layer, which the encoder has to take.
_KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")

# Types that no run can train: what PEFT wants for them, and what to use instead.
_REFUSED = {
    "ADAPTION_PROMPT": "PEFT has it for the attention of LLaMA, Mistral and GPT-2 alone: use method=prefix",
    "CPT": "PEFT has it for models that generate text alone: use PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING": "it wants a number of its task with each row, and a run has one task: use PROMPT_TUNING",
    "POLY": "it wants a number of its task with each row, and a run has one task: use LORA",
    "SHADOW": "PEFT has it for the layers of decoders, whose classifiers have another form: use method=lst",
    "TRAINABLE_TOKENS": "PEFT trains no head with it: use LORA with +method.args.trainable_token_indices=[IDS]",
    "XLORA": "it mixes adapters that are trained already, and PEFT trains no head with it: use LORA",
}

# With these, LoRA starts from rows that PEFT gets apart from the training; without such rows it starts as usual.
_STARTS_FROM_ROWS = ("corda", "eva", "lora_ga")


@dataclass
class PeftSettings:
    """A PEFT type and the arguments of its config class."""

    type: str = setting("IA3", "Name of the PEFT type, such as IA3, ADALORA or LOHA.")
    args: dict[str, Any] = setting({}, "Arguments of the config class: +method.args.NAME=VALUE.")


# Matches every expression with every name. It runs in a separate process, which can be ended, unlike `re`.
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
    and matches names of modules by regular expressions, some of which would take far too long.

    Args:
        settings: Settings of a PEFT config, or some of them.
        modules: The names of the model's modules.
        where: What the settings are called in messages.

    Raises:
        RequestError: If they name a package, or contain an expression that is invalid or takes too long.
    """
    if settings.get("megatron_config"):
        raise RequestError(
            f"{where}: megatron_config imports a package by its name, which is not supported: remove it."
        )
    texts = {
        text for name, value in settings.items() if "modules" in name or "pattern" in name for text in _texts(value)
    }
    # If PEFT extends an expression, it adds no more than this.
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
    items = [value] if isinstance(value, str) else value if isinstance(value, Iterable) else []
    return [item for item in items if isinstance(item, str)]


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
    peft_type = config.type.upper()
    if peft_type not in known:
        raise unknown_choice("method.type", config.type, known)
    _check_type(model, peft_type, config.args, context)
    config_class = known[peft_type]
    names = {known_field.name for known_field in fields(config_class)}
    for name in config.args:
        if name not in names:
            raise unknown_choice("method.args", name, names)
    check_config(config.args, (name for name, _ in model.named_modules()), "method.args")
    defaults = _default_arguments(model, config_class, peft_type, context)
    try:
        peft_config = config_class(**(defaults | config.args))
    except (TypeError, ValueError) as error:
        raise RequestError(f"method.args do not fit {config_class.__name__}: {error}") from error
    return with_adapter(model, peft_config, context.anatomy)


def _check_type(model: nn.Module, peft_type: str, args: Mapping[str, Any], context: AdaptContext) -> None:
    """Refuses types that PEFT would apply, but that would then fail in training or train something else.

    Args:
        model: The plain classifier.
        peft_type: Name of the type.
        args: Arguments that the user gives.
        context: The context of this run.

    Raises:
        RequestError: If the type needs something that no run has, or that this architecture does not have.
    """
    if peft_type in _REFUSED:
        raise RequestError(f"method.type={peft_type} cannot be trained here: {_REFUSED[peft_type]}.")
    start = args.get("init_lora_weights")
    if start in _STARTS_FROM_ROWS:
        raise RequestError(
            f"method.args.init_lora_weights={start} wants rows before the training, which a run does not give: "
            "leave it out, or use pissa, olora or gaussian."
        )
    if peft_type in _KEYS_AND_VALUES:
        encoder = model.get_submodule(context.anatomy.encoder)
        if "past_key_values" not in inspect.signature(encoder.forward).parameters:
            raise RequestError(
                f"method.type={peft_type} needs an encoder that takes keys and values of earlier tokens, which "
                f"{context.anatomy.model_type} does not: use method=prefix."
            )


def _default_arguments(model: nn.Module, config_class: Any, peft_type: str, context: AdaptContext) -> dict[str, Any]:
    """Arguments that follow from the architecture, the adapted layers and the length of the training.

    Args:
        model: The plain classifier.
        config_class: The type's config class.
        peft_type: Name of the type.
        context: The context of this run.

    Raises:
        RequestError: If the type cannot be limited to the adapted layers.
    """
    defaults: dict[str, Any] = {}
    known = {option.name: option.default for option in fields(config_class)}
    anatomy, shape = context.anatomy, model.config
    if "target_modules" in known:
        defaults["target_modules"] = _targets(model, peft_type, context)
    elif not context.plan.everything:
        raise RequestError(f"method.type={peft_type} adapts no single layers: use layers=all.")
    if "feedforward_modules" in known:
        defaults["feedforward_modules"] = anatomy.layer_pattern(context.plan.adapted, ("feed_forward_out",))
    if peft_type == "ADALORA":
        defaults["total_step"] = context.num_training_steps
    if peft_type in _DIVISORS:
        size = _DIVISORS[peft_type]
        defaults[size] = math.gcd(shape.hidden_size, known[size])  # type: ignore[union-attr, arg-type]
    if "num_virtual_tokens" in known:
        # PEFT would look for these under names that not every architecture has.
        embedded = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        defaults |= {
            "num_virtual_tokens": 20,
            "token_dim": shape.hidden_size if peft_type in _KEYS_AND_VALUES else embedded,  # type: ignore[union-attr]
            "num_layers": anatomy.num_layers(shape),
            "num_attention_heads": shape.num_attention_heads,  # type: ignore[union-attr]
        }
    return defaults


def _targets(model: nn.Module, peft_type: str, context: AdaptContext) -> str:
    """A regular expression for the modules that a type adapts where the user names none."""
    from petl_bench.methods.base import norm_modules

    if peft_type == "LN_TUNING":
        norms = norm_modules(model, context.anatomy, context.layers_to_transform)
        return rf"(?:{re.escape(context.anatomy.encoder)}\.)?({'|'.join(map(re.escape, norms))})"
    return context.anatomy.layer_pattern(context.plan.adapted, _ROLES.get(peft_type, _DEFAULT_ROLES))


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
        ranks = self._ranks()
        for pattern in ranks.values():
            for name in pattern or {}:
                singular_values = self._model.base_model.model.get_parameter(name)  # type: ignore[union-attr, operator]
                pattern[name] = (singular_values.detach() != 0).view(-1).tolist()
        return ranks

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
