"""The model that a run trains: built, counted, saved and loaded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from petl_bench.backbones.load import Backbone, read_pooled, shorten
from petl_bench.config import RunConfig
from petl_bench.errors import RequestError, RunError, first_line
from petl_bench.methods.peft import check_config
from petl_bench.methods.registry import AdaptContext, MethodConfig
from petl_bench.records.schema import Params
from petl_bench.records.store import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    CARD_FILE,
    MODEL_CONFIG,
    MODEL_FOLDER,
    RunFolder,
    find_adapter,
    read_json,
)

if TYPE_CHECKING:
    from peft import PeftModel

# PEFT keeps a frozen copy of every module it trains whole.
_FROZEN_COPY = ".original_module."

# What PEFT puts before the names of a model's tensors.
_PEFT_PREFIX = "base_model.model."

_log = logging.getLogger(__name__)


def count_backbone(model: nn.Module, in_head: Callable[[str], bool]) -> int:
    """Counts the parameters of a plain model outside its head."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not in_head(name))


def count_parameters(model: nn.Module, backbone: int, in_head: Callable[[str], bool]) -> Params:
    """Counts an adapted model's parameters; tied ones count once, PEFT's frozen copy of the head not at all.

    Args:
        model: The adapted model.
        backbone: `count_backbone` of the plain model.
        in_head: Whether a parameter of the *adapted* model belongs to the head.

    Returns:
        Numbers of parameters of the whole model, of the backbone, and of what is trained in the head and outside it.
    """
    counted = [(name, parameter) for name, parameter in model.named_parameters() if _FROZEN_COPY not in name]
    trained = [(name, parameter.numel()) for name, parameter in counted if parameter.requires_grad]
    head = sum(count for name, count in trained if in_head(name))
    trainable = sum(count for _, count in trained)
    return Params(
        total=sum(parameter.numel() for _, parameter in counted),
        backbone=backbone,
        trainable=trainable,
        trainable_method=trainable - head,
        trainable_head=head,
        trainable_share_of_backbone_percent=100.0 * trainable / backbone,
    )


def build_adapted(
    cfg: RunConfig, backbone: Backbone, labels: list[str] | None, num_training_steps: int, device: str = "cpu"
) -> tuple[nn.Module, Params]:
    """Builds the backbone with its head, applies the method to it, and counts the parameters.

    Args:
        cfg: The run.
        backbone: Opened with the run's layers.
        labels: Names of the classes or tags; None for regression.
        num_training_steps: Updates of the whole training.
        device: "cpu", or "meta" for a model whose tensors have no content.

    Returns:
        The adapted model, and its numbers of parameters.

    Raises:
        RequestError: If the method or its tokens do not fit, or it leaves nothing to train, or it reads what
            `train.last_layer` leaves out.
    """
    import torch
    from accelerate.utils import set_seed

    from petl_bench.frozen.features import narrow_last_layer
    from petl_bench.methods.base import adapt

    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps)
    set_seed(cfg.train.seed)
    model: nn.Module = backbone.build_model(len(labels) if labels else 1, labels, device)
    num_backbone = count_backbone(model, backbone.anatomy.in_head)
    with torch.device("meta") if device == "meta" else nullcontext():
        model = adapt(model, cfg.method, context)
    _check_virtual_tokens(model, cfg, backbone)
    if cfg.method.start is not None and device != "meta":
        start_from(model, cfg.method, backbone)
    if cfg.backbone.dtype == "bf16" and store_frozen_in_bf16(model) == 0:
        raise RequestError(f"backbone.dtype=bf16 is for weights that stay frozen: method={cfg.method.name} trains all.")
    params = count_parameters(model, num_backbone, backbone.anatomy.in_head)
    if params.trainable == 0:
        raise RequestError(f"method={cfg.method.name} leaves nothing to train with layers={cfg.layers.name}.")
    if cfg.train.last_layer == "first_token":
        narrow_last_layer(model, backbone.anatomy)
    if cfg.train.gradient_checkpointing:
        try:
            # Reentrant checkpointing would not reach adapters above frozen embeddings.
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        except ValueError as error:
            raise RequestError(f"train.gradient_checkpointing=true does not work here: {error}") from error
        # Only reentrant checkpointing needs gradients of the embeddings' output, which the line above switched on.
        model.disable_input_require_grads()  # type: ignore[operator]
    return model, params


def _check_virtual_tokens(model: nn.Module, cfg: RunConfig, backbone: Backbone) -> None:
    """Raises RequestError if the model does not take the longest rows with the tokens that its adapter adds to each."""
    for adapter in getattr(model, "peft_config", {}).values():
        added = adapter.num_virtual_tokens if adapter.is_prompt_learning else 0
        if added and cfg.task.max_length + added > backbone.max_length:
            raise RequestError(
                f"task.max_length={cfg.task.max_length} and the {added} tokens that method={cfg.method.name} adds do "
                f"not fit backbone={backbone.settings.name}, which takes at most {backbone.max_length} tokens: set "
                f"task.max_length={backbone.max_length - added} or less."
            )


def store_frozen_in_bf16(model: nn.Module) -> int:
    """Converts all parameters that are not trained, and returns their number; others and buffers stay as they are."""
    import torch

    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.data = parameter.data.to(torch.bfloat16)
    return len(frozen)


# Fields of PEFT's configs that are sets: their order changes from process to process.
_SET_FIELDS = ("target_modules", "exclude_modules", "feedforward_modules")


# The task type in the stored config of an adapter whose head reads a layer below the top one, or pools otherwise than
# the architecture does. PEFT supports neither, so its predictions would differ. It refuses a task type that it does not
# know, whatever the adapter's type, and prints this one in its message.
_ON_FIRST_LAYERS, _POOLED = " on the first {} layers", " with a head on {}"
_LOAD_IT_HERE = ": load it with petl_bench.model.load_adapter"
_NOTED = re.compile(
    rf"(\w+)(?:{_ON_FIRST_LAYERS.format('([0-9]+)')})?(?:{_POOLED.format('(cls|mean)')})?{_LOAD_IT_HERE}"
)


def save_trained(folder: RunFolder, model: nn.Module, backbone: Backbone, card: Callable[[str], str]) -> int:
    """Writes `adapter/` in PEFT's format, or `model/` in transformers' format if the method is no PEFT tuner.

    Args:
        folder: The run's folder.
        model: The trained model, unwrapped.
        backbone: The backbone that it was built from.
        card: Returns the model card of an `adapter` or a whole `model`, saved as `README.md` next to the weights.

    Returns:
        Size of the weight files in bytes.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        return save_adapter(folder, model, backbone, card("adapter"))
    with folder.replace_folder(MODEL_FOLDER) as target:
        model.save_pretrained(target)  # type: ignore[operator]
        backbone.load_tokenizer().save_pretrained(str(target))
        (target / CARD_FILE).write_text(card("model"), encoding="utf-8")
    return _weights_bytes(folder.path / MODEL_FOLDER)


def save_adapter(
    folder: RunFolder, model: PeftModel, backbone: Backbone, card: str, *, classifies: bool = True, half: bool = False
) -> int:
    """Writes `adapter/` in PEFT's format.

    Args:
        folder: The run's folder.
        model: The adapted model.
        backbone: The backbone that it was built from.
        card: The model card.
        classifies: Whether the model has a head. If so, the config of the whole model is saved with the adapter, as it
            names the labels; not as `config.json`, as transformers would look for a whole model next to it.
        half: Store the weights in half precision.

    Returns:
        Size of the weight files in bytes.
    """
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()} if half else None
    with folder.replace_folder(ADAPTER_FOLDER) as target:
        # The default, "auto", asks the hub whether the vocabulary was enlarged.
        model.save_pretrained(str(target), save_embedding_layers=False, state_dict=weights)
        _finish_config(target / ADAPTER_CONFIG, backbone, classifies=classifies)
        (target / CARD_FILE).write_text(card, encoding="utf-8")
        if classifies:
            model.config.to_json_file(target / MODEL_CONFIG)
    return _weights_bytes(folder.path / ADAPTER_FOLDER)


def load_trained(folder: RunFolder, backbone: Backbone, labels: list[str] | None) -> nn.Module:
    """Loads what `save_trained` wrote.

    Args:
        folder: The run's folder.
        backbone: The backbone of an adapter; for a whole model only its settings are used.
        labels: Names of the classes or tags; None for regression.

    Returns:
        The model in evaluation mode.

    Raises:
        RequestError: If the run kept no weights.
        RunError: If they cannot be read.
    """
    import torch
    from safetensors import SafetensorError

    adapter, whole = folder.path / ADAPTER_FOLDER, folder.path / MODEL_FOLDER
    try:
        if adapter.is_dir():
            plain = backbone.build_model(len(labels or [0]), labels)
            names = (name for name, _ in plain.named_modules())
            file = adapter / ADAPTER_CONFIG
            check_config(read_json(file), names, str(file))
            # Trainable, so that the parameters that were frozen in training can be told from the others.
            adapted = load_adapter(plain, adapter, is_trainable=True)
            if backbone.settings.dtype == "bf16":
                store_frozen_in_bf16(adapted)
            return adapted.eval()
        if whole.is_dir():
            model: nn.Module = backbone.model_class.from_pretrained(
                whole,
                dtype=torch.float32,
                attn_implementation=backbone.settings.attention,
                use_safetensors=True,
                trust_remote_code=False,
            )
            if backbone.settings.pooling is not None:
                read_pooled(model)
            return model.eval()
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"The weights in {folder.path} cannot be read ({error}): repeat the run with --force."
        ) from error
    raise RequestError(
        f"{folder.path} holds no weights: it was run with train.save_weights=false; repeat it with "
        "`--force train.save_weights=true`."
    )


def start_from(model: nn.Module, method: MethodConfig, backbone: Backbone) -> None:
    """Initializes a model's adapter with the values of one on disk; the head keeps its fresh initialization.

    Args:
        model: The adapted model, changed in place.
        method: The options of the method; `init` says where the adapter is.
        backbone: Opened with the run's layers; an adapter may also contain others.

    Raises:
        RequestError: If the adapter is of another method, lacks a tensor, or has one that does not belong in the model.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    assert method.start is not None
    folder, anatomy, plan = find_adapter(method.start), backbone.anatomy, backbone.plan
    if not isinstance(model, PeftModel):
        raise RequestError(f"method.init={method.init}: method={method.name} has no adapter: leave it out.")
    try:
        stored, made_with = load_file(folder / ADAPTER_WEIGHTS), read_json(folder / ADAPTER_CONFIG)
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(f"method.init={method.init}: the adapter cannot be read ({first_line(error)}).") from error

    def name_here(stored_name: str) -> str:
        """The adapter of a bare encoder leaves the encoder's own name out."""
        inside = stored_name.removeprefix(_PEFT_PREFIX)
        bare = not inside.startswith(f"{anatomy.encoder}.") and not anatomy.in_head(inside)
        return f"{_PEFT_PREFIX}{anatomy.encoder}.{inside}" if bare else stored_name

    def is_adapted(name: str) -> bool:
        return plan.everything or anatomy.layer_number(name.removeprefix(_PEFT_PREFIX)) in plan.adapted

    tensors = {name_here(name): tensor for name, tensor in stored.items()}
    tensors = {name: tensors[name] for name in tensors if is_adapted(name) and not anatomy.in_head(name)}
    fresh = get_peft_model_state_dict(model)
    own = {name: value for name, value in fresh.items() if not anatomy.in_head(name)}
    faults = [f"lacks {name}" for name in own if name not in tensors]
    faults += [f"holds {name}, for which this run has no place" for name in tensors if name not in own]
    faults += [
        f"holds {name} of the shape {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if faults:
        options = {option.name for option in fields(method)} & set(made_with)
        others = [
            f"method.{name}={made_with[name]}" for name in sorted(options) if made_with[name] != getattr(method, name)
        ]
        way_out = f" It was made with {', '.join(others)}." if others else ""
        raise RequestError(f"The adapter of method.init={method.init} does not fit: it {faults[0]}.{way_out}")
    set_peft_model_state_dict(model, fresh | tensors)
    _log.info("starts from the adapter in %s", folder)


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _finish_config(file: Path, backbone: Backbone, *, classifies: bool) -> None:
    """Adds what PEFT does not know about the model, and sorts its sets, so that the same run writes the same bytes."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for name in _SET_FIELDS:
        if isinstance(content.get(name), list):
            content[name].sort()
    plan, pooling = backbone.plan, backbone.settings.pooling
    noted = _ON_FIRST_LAYERS.format(plan.head) if plan.head < plan.num_layers else ""
    noted += _POOLED.format(pooling) if pooling is not None and classifies else ""
    if noted:
        content["task_type"] = f"{content['task_type']}{noted}{_LOAD_IT_HERE}"
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def load_adapter(base: Any, folder: str | Path, *, is_trainable: bool = False) -> PeftModel:
    """Loads the adapter of a run on a classifier with the backbone that it was trained on.

    `PeftModel.from_pretrained` does the same for most adapters. It refuses those whose head reads a layer below the top
    one, as the layers above it must be removed from the backbone first, or pools otherwise than its architecture.

    Args:
        base: The backbone with a head of the right size, as transformers loads it; changed in place.
        folder: The `adapter` folder of the run.
        is_trainable: Whether the adapter is going to be trained further.

    Returns:
        The classifier with the adapter, in evaluation mode unless `is_trainable`.

    Raises:
        RequestError: If the folder contains no adapter, or the backbone has too few layers.
    """
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    file = Path(folder) / ADAPTER_CONFIG
    if not file.is_file():
        raise RequestError(f"{folder} holds no adapter: {file.name} is missing.")
    content = read_json(file)
    noted = _NOTED.fullmatch(str(content["task_type"]))
    if noted is not None:
        content["task_type"], num_layers, pooling = noted.groups()
        if num_layers is not None and (num_layers_here := shorten(base, int(num_layers))) < int(num_layers):
            raise RequestError(
                f"The adapter in {folder} is for the first {num_layers} layers of its base, but this one has "
                f"{num_layers_here}."
            )
        if pooling is not None:
            base.config.classifier_pooling = pooling
            read_pooled(base)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[content["peft_type"]]
    config = kind.from_peft_type(**kind.check_kwargs(**content))
    # PEFT cannot load a prompt as trainable; the trained parameters are marked below instead.
    is_prompt = config.is_prompt_learning
    adapted = PeftModel.from_pretrained(base, str(folder), config=config, is_trainable=is_trainable and not is_prompt)
    if is_trainable and is_prompt:
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad = name.startswith("prompt_encoder.") or ".modules_to_save." in name
    return adapted
