"""Builds a backbone with its head and its tokenizer: pretrained or random, or on the meta device."""

from __future__ import annotations

import copy
import logging
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.backbones.anatomy import (
    Anatomy,
    LayerPlan,
    LayersConfig,
    all_anatomies,
    anatomy_of,
    is_within,
    resolve_layers,
)
from petl_bench.backbones.source import (
    BackboneConfig,
    Source,
    byte_tokenizer,
    check_vocabulary,
    find_config,
    find_source,
    load_tokenizer,
    read_files,
)
from petl_bench.errors import RequestError, RunError, first_line
from petl_bench.process import file_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """The description of an encoder: what is known about it before its weights are loaded."""

    settings: BackboneConfig
    anatomy: Anatomy
    config: Any
    plan: LayerPlan
    source: Source | None
    task_type: str = "classification"

    @property
    def model_class(self) -> Any:
        """The transformers class that builds the model with its head."""
        import transformers

        kind = "Token" if self.anatomy.is_tagger else "Sequence"
        return getattr(transformers, f"AutoModelFor{kind}Classification")

    @property
    def max_length(self) -> int:
        """The largest number of tokens that the model accepts in one sequence."""
        return self.anatomy.max_length(self.config)

    def check_length(self, length: int) -> None:
        """Raises RequestError if the model does not accept `length` tokens."""
        if length > self.max_length:
            raise RequestError(
                f"task.max_length={length} does not fit backbone={self.settings.name}, which takes at most "
                f"{self.max_length} tokens."
            )

    def check_segments(self, count: int) -> None:
        """Raises RequestError if the model has segment embeddings, but for fewer than `count` segments."""
        known = getattr(self.config, "type_vocab_size", 0) or 0
        if 0 < known < count:
            raise RequestError(
                f"The tokenizer of backbone={self.settings.name} numbers {count} segments, but the model has "
                f"embeddings for {known}: give the tokenizer that belongs to the model."
            )

    def file_hashes(self) -> dict[str, str] | None:
        """Hex sha256 of each file that the backbone is read from, by name; None for random weights."""
        if self.source is None:
            return None
        return {name: file_sha256(file) for name, file in sorted(read_files(self.source.folder).items())}

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the weights."""
        if self.source is None:
            return byte_tokenizer(self.config, self.max_length)
        tokenizer = load_tokenizer(self.source.folder)
        check_vocabulary(self.source.folder, tokenizer, self.config.vocab_size)
        return tokenizer

    def build_model(self, num_labels: int, labels: list[str] | None = None, device: str = "cpu") -> PreTrainedModel:
        """Builds the model with a fresh head, in fp32; the head (and random weights) are drawn from torch's generator.

        Args:
            num_labels: Outputs of the head; 1 for regression.
            labels: Names of the outputs, which are stored in the model's config.
            device: "cpu", or "meta" for a model without weights.

        Raises:
            RunError: If the weights cannot be read or do not fit.
        """
        import torch
        from transformers.utils import logging as transformers_logging

        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()
        # Each model gets its own copy, as a method may change it.
        config = copy.deepcopy(self.config)
        config.num_labels = num_labels
        config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
        if self.task_type == "multilabel":
            config.problem_type = "multi_label_classification"
        if self.settings.pooling is not None:
            config.classifier_pooling = self.settings.pooling
        if labels:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
        try:
            if self.source is None or device == "meta":
                with torch.device("meta") if device == "meta" else nullcontext():
                    model: PreTrainedModel = self.model_class.from_config(
                        config, dtype=torch.float32, attn_implementation=self.settings.attention
                    )
            else:
                model = _load_weights(
                    self.model_class, self.source.folder, config, self.anatomy, self.settings.attention
                )
        except ValueError as error:
            if self.settings.attention is None:
                raise self._unfit(error) from error
            raise RequestError(f"backbone.attention={self.settings.attention} does not work here: {error}") from error
        except (AttributeError, KeyError, TypeError, ArithmeticError, IndexError, AssertionError) as error:
            raise self._unfit(error) from error
        if self.settings.pooling is not None:
            read_pooled(model)
        # Saved adapters contain the name of their model; a local path would mean nothing elsewhere.
        path = self.settings.path
        model.config._name_or_path = Path(path).name if path else self.settings.hub_id or self.settings.name
        model.name_or_path = model.config._name_or_path
        return model

    def _unfit(self, error: Exception) -> RequestError | RunError:
        if self.source is None:
            return RequestError(f"No model can be built as backbone.architecture describes it: {first_line(error)}")
        return RunError(
            f"No model can be built as {self.source.folder / 'config.json'} describes it: {first_line(error)}"
        )


def open_backbone(
    settings: BackboneConfig, layers: LayersConfig, *, weights: bool = True, task_type: str = "classification"
) -> Backbone:
    """Finds a backbone's files and reads its config, without the layers above the one that the head reads.

    Args:
        settings: Which backbone.
        layers: Which layers are adapted and where the head sits.
        weights: If False, only the shape is read: from `backbone.path`, from `backbone.architecture`, or else from the
            config.json of the hub's model.
        task_type: The type of the task, on which the head and its loss depend.

    Returns:
        The backbone, whose weights are not read yet.

    Raises:
        RequestError: If the settings do not fit the backbone.
        RunError: If its files cannot be obtained or read.
    """
    # Packages that add an architecture register it in transformers when they are imported.
    all_anatomies()
    source = find_source(settings) if weights and settings.weights == "pretrained" else None
    config = _read_config(source.folder) if source else _config_without_weights(settings)
    anatomy = anatomy_of(config.model_type)
    if task_type == "tagging":
        if settings.pooling is not None:
            raise RequestError(f"backbone.pooling={settings.pooling}: a head that tags every token pools none of them.")
        anatomy = anatomy.as_tagger()
    plan = resolve_layers(layers, anatomy.num_layers(config))
    _truncate(config, anatomy, plan.head)
    return Backbone(settings, anatomy, config, plan, source, task_type)


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of many kinds, as any value in the file may be wrong
        raise RunError(f"{folder / 'config.json'} cannot be read: {first_line(error)}") from error


def _config_without_weights(settings: BackboneConfig) -> Any:
    from transformers import AutoConfig

    if settings.weights == "pretrained" and (settings.path is not None or not settings.architecture):
        return _read_config(find_config(settings))
    if not settings.architecture or settings.model_type is None:
        raise RequestError(
            f"backbone={settings.name} gives no backbone.architecture or no backbone.model_type, which weights=random "
            "needs."
        )
    anatomy = anatomy_of(settings.model_type)
    try:
        config = AutoConfig.for_model(anatomy.model_type, **settings.architecture)
    except Exception as error:  # of many kinds, as any value may be wrong
        words = " ".join(str(error).split()) or type(error).__name__
        reason = re.sub(r"^Validation error for field '\w+': (\w+: )?", "", words).rstrip(".")
        raise RequestError(
            f"backbone.architecture does not describe a {anatomy.model_type} model: {reason}."
        ) from error
    _check_sizes(config, anatomy)
    return config


_SIZES = ("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads")


def _check_sizes(config: Any, anatomy: Anatomy) -> None:
    """Raises RequestError if a size in `backbone.architecture` is no size, or no token can pad."""
    for name in (*_SIZES, anatomy.feed_forward_size_key):
        key, size = config.attribute_map.get(name, name), getattr(config, name)
        if type(size) is not int or size < 1:
            raise RequestError(f"backbone.architecture.{key}={size} must be a whole number of at least 1.")
    pad = config.pad_token_id
    if type(pad) is not int or not 0 <= pad < config.vocab_size:
        raise RequestError(
            f"backbone.architecture.pad_token_id={pad} must be one of the tokens, 0 to {config.vocab_size - 1}."
        )


def _truncate(config: Any, anatomy: Anatomy, num_layers: int) -> None:
    setattr(config, anatomy.num_layers_key, num_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]


def shorten(model: Any, num_layers: int) -> int:
    """Removes the layers above the first `num_layers` from a loaded model; returns how many layers there were."""
    anatomy = anatomy_of(model.config.model_type)
    layers = anatomy.get_layers(model)
    num_loaded = len(layers)
    if num_loaded > num_layers:
        del layers[num_layers:]
        _truncate(model.config, anatomy, num_layers)
    return num_loaded


def attention_implementation(config: Any) -> str | None:
    """The name of the attention kernel that a transformers model uses; None if its config names none."""
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


def set_attention_implementation(config: Any, name: str) -> None:
    """Sets the kernel's name in a config without transformers' check, which is meant for models, not for modules."""
    config._attn_implementation_internal = name


def read_pooled(model: Any) -> None:
    """Makes a classifier's head follow `config.classifier_pooling` if its architecture does not do so.

    Args:
        model: A transformers model; the setting is `cls` (the first token's state) or `mean` (of all tokens' states).
            ModernBERT implements the setting itself; all others read the first token.
    """
    config = model.config
    if config.classifier_pooling == "cls" or hasattr(type(config)(), "classifier_pooling"):
        return
    anatomy = anatomy_of(config.model_type)
    encoder = model.get_submodule(anatomy.encoder)
    if any(isinstance(getattr(hook, "__self__", None), _Mean) for hook in encoder._forward_pre_hooks.values()):
        return
    mean = _Mean()
    encoder.register_forward_pre_hook(mean.note_mask, with_kwargs=True)
    if anatomy.pooler is not None:
        model.get_submodule(anatomy.pooler).register_forward_pre_hook(mean.before_pooler)
    else:
        encoder.register_forward_hook(mean.after_encoder)


class _Mean:
    """Replaces a row's states by their mean, for a head that reads the first state only."""

    def __init__(self) -> None:
        self._mask: torch.Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Mean:
        # PEFT copies a pooler that is trained, and the copy needs the mask that was passed to the encoder.
        return self

    def note_mask(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        """Called before the encoder."""
        self._mask = kwargs.get("attention_mask")

    def before_pooler(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Called before a pooler inside the encoder."""
        return (self._of(args[0]), *args[1:])

    def after_encoder(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Called after an encoder without a pooler."""
        output.last_hidden_state = self._of(output.last_hidden_state)
        return output

    def _of(self, states: torch.Tensor) -> torch.Tensor:
        """The mean over real tokens, shape (batch, tokens, d) to (batch, 1, d)."""
        if self._mask is None:
            return states.mean(dim=1, keepdim=True)
        # With a prefix the mask is longer than the states.
        mask = self._mask[:, -states.shape[1] :, None].to(states.dtype)
        return (states * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _load_weights(
    model_class: Any, folder: Path, config: Any, anatomy: Anatomy, attention: str | None
) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError

    model: PreTrainedModel
    try:
        model, info = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            # A head of another task may have another size; it is not used anyway.
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RunError(f"The weights in {folder} cannot be read ({error}): fetch or copy them again.") from error
    _check_loaded(folder, info, config, anatomy)
    _renew_head(model, set(info["missing_keys"]), anatomy)
    return model


def _renew_head(model: PreTrainedModel, new: set[str], anatomy: Anatomy) -> None:
    """Reinitialises head weights that the checkpoint has from another task; transformers did so for missing ones."""
    import torch

    for name, parameter in model.named_parameters():
        if is_within(name, anatomy.fresh_head) and name not in new:
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
            else:
                torch.nn.init.normal_(parameter, std=model.config.initializer_range)


def _check_loaded(folder: Path, info: dict[str, Any], config: Any, anatomy: Anatomy) -> None:
    """Raises RunError if embeddings or layers lack weights, layers have unknown ones, or shapes do not match."""
    missing = [name for name in info["missing_keys"] if not anatomy.in_head(name)]
    if lost := [name for name in missing if not is_within(name, anatomy.above_layers)]:
        raise RunError(f"The weights in {folder} lack {len(lost)} tensors of the encoder, {lost[0]} among them.")
    if missing:
        _log.warning("new, not pretrained: %s", ", ".join(sorted(missing)))
    num_layers = anatomy.num_layers(config)
    unused = [anatomy.layer_number(_with_prefix(name, anatomy)) for name in info["unexpected_keys"]]
    if any(number is not None and number <= num_layers for number in unused):
        raise RunError(
            f"The weights in {folder} hold tensors inside layers 1..{num_layers} that this architecture lacks."
        )
    mismatched = [key for key in info["mismatched_keys"] if not is_within(key[0], anatomy.fresh_head)]
    if mismatched:
        raise RunError(f"The weights in {folder} do not fit config.json: {mismatched[0]}.")


def _with_prefix(name: str, anatomy: Anatomy) -> str:
    """The name with the encoder's name in front, which checkpoints of a bare encoder leave out."""
    return name if name.startswith(f"{anatomy.encoder}.") else f"{anatomy.encoder}.{name}"
