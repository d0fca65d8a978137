"""The model that a run trains: built, counted, saved and loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from petl_bench.backbones.layers import LayerPlan
from petl_bench.backbones.load import Backbone, shorten
from petl_bench.config import RunConfig
from petl_bench.errors import RequestError, RunError
from petl_bench.methods.peft import check_config
from petl_bench.methods.registry import AdaptContext
from petl_bench.records.schema import Params
from petl_bench.records.store import ADAPTER_FOLDER, MODEL_FOLDER, RunFolder, read_json

if TYPE_CHECKING:
    from peft import PeftModel

# PEFT keeps a frozen copy of every module it trains whole.
_FROZEN_COPY = ".original_module."


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
    kept = [(name, parameter) for name, parameter in model.named_parameters() if _FROZEN_COPY not in name]
    trained = [(name, parameter.numel()) for name, parameter in kept if parameter.requires_grad]
    head = sum(count for name, count in trained if in_head(name))
    trainable = sum(count for _, count in trained)
    return Params(
        total=sum(parameter.numel() for _, parameter in kept),
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
        RequestError: If the method does not fit, leaves nothing to train, or reads what `train.last_layer` leaves out.
    """
    import torch
    from accelerate.utils import set_seed

    from petl_bench.frozen.last_layer import narrow_last_layer
    from petl_bench.methods.base import adapt

    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps)
    set_seed(cfg.train.seed)
    model: nn.Module = backbone.build_model(len(labels) if labels else 1, labels, device)
    num_backbone = count_backbone(model, backbone.anatomy.in_head)
    with torch.device("meta") if device == "meta" else nullcontext():
        model = adapt(model, cfg.method, context)
    if cfg.backbone.dtype == "bf16" and store_frozen_in_bf16(model) == 0:
        raise RequestError(f"backbone.dtype=bf16 is for weights that stay frozen: method={cfg.method.name} trains all.")
    params = count_parameters(model, num_backbone, backbone.anatomy.in_head)
    if params.trainable == 0:
        raise RequestError(f"method={cfg.method.name} leaves nothing to train with layers={cfg.layers.name}.")
    if cfg.train.last_layer == "first_token":
        narrow_last_layer(model, backbone.anatomy)
    if cfg.train.gradient_checkpointing:
        # Reentrant checkpointing would not reach adapters above frozen embeddings.
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        # Only reentrant checkpointing needs gradients of the embeddings' output, which the line above switched on.
        model.disable_input_require_grads()  # type: ignore[operator]
    return model, params


def store_frozen_in_bf16(model: nn.Module) -> int:
    """Converts all parameters that are not trained, and returns their number; others and buffers stay as they are."""
    import torch

    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.data = parameter.data.to(torch.bfloat16)
    return len(frozen)


# Fields of PEFT's configs that are sets: their order changes from process to process.
_SET_FIELDS = ("target_modules", "exclude_modules", "feedforward_modules")

_CONFIG_FILE = "adapter_config.json"

# The task type in the stored config of an adapter whose head reads a layer below the top one. PEFT knows nothing of
# that layer and would run those above it too, for other predictions. It refuses a task type that it does not know,
# whatever the adapter's type, and its message prints this one.
_ON_FIRST_LAYERS = "{task_type} on the first {num_layers} layers: load it with petl_bench.model.load_adapter"


def save_trained(folder: RunFolder, model: nn.Module, backbone: Backbone) -> int:
    """Writes `adapter/` in PEFT's format, or `model/` in transformers' format if the method is no PEFT tuner.

    Returns:
        Size of the weight files in bytes.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        with folder.replace_folder(ADAPTER_FOLDER) as target:
            # The default, "auto", asks the hub whether the vocabulary was enlarged.
            model.save_pretrained(str(target), save_embedding_layers=False)
            _finish_config(target / _CONFIG_FILE, backbone.plan)
        return _weights_bytes(folder.path / ADAPTER_FOLDER)
    with folder.replace_folder(MODEL_FOLDER) as target:
        model.save_pretrained(target)  # type: ignore[operator]
        backbone.load_tokenizer().save_pretrained(str(target))
    return _weights_bytes(folder.path / MODEL_FOLDER)


def load_trained(folder: RunFolder, backbone: Backbone, labels: list[str] | None) -> nn.Module:
    """Loads what `save_trained` wrote.

    Args:
        folder: The run's folder.
        backbone: What an adapter belongs to; a whole model needs its settings alone.
        labels: Names of the classes or tags; None for regression.

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
            file = adapter / _CONFIG_FILE
            check_config(read_json(file), names, str(file))
            # As trainable, so that what was frozen in training is known from what was not.
            adapted = load_adapter(plain, adapter, is_trainable=True)
            if backbone.settings.dtype == "bf16":
                store_frozen_in_bf16(adapted)
            return adapted
        if whole.is_dir():
            model: nn.Module = backbone.model_class.from_pretrained(
                whole,
                dtype=torch.float32,
                attn_implementation=backbone.settings.attention,
                use_safetensors=True,
                trust_remote_code=False,
            )
            return model
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"The weights in {folder.path} cannot be read ({error}): repeat the run with --force."
        ) from error
    raise RequestError(
        f"{folder.path} holds no weights: it was run with train.save_weights=false; repeat it with "
        "`--force train.save_weights=true`."
    )


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _finish_config(file: Path, plan: LayerPlan) -> None:
    """Notes up to which layer the encoder goes, and sorts PEFT's sets, so that the same run writes the same bytes."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for name in _SET_FIELDS:
        if isinstance(content.get(name), list):
            content[name].sort()
    if plan.head < plan.num_layers:
        content["task_type"] = _ON_FIRST_LAYERS.format(task_type=content["task_type"], num_layers=plan.head)
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def load_adapter(base: Any, folder: str | Path, *, is_trainable: bool = False) -> PeftModel:
    """Loads the adapter of a run on a classifier with the backbone that it was trained on.

    `PeftModel.from_pretrained` does the same for most adapters. It refuses those whose head reads a layer below the top
    one, for which the layers above it must be taken off the backbone first.

    Args:
        base: The backbone with a head of the right size, as transformers loads it; changed in place.
        folder: The `adapter` folder of the run.
        is_trainable: Whether the adapter is going to be trained further.

    Raises:
        RequestError: If the folder holds no adapter, or the backbone has too few layers.
    """
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    file = Path(folder) / _CONFIG_FILE
    if not file.is_file():
        raise RequestError(f"{folder} holds no adapter: {file.name} is missing.")
    content = read_json(file)
    noted = re.fullmatch(_ON_FIRST_LAYERS.format(task_type=r"(\w+)", num_layers=r"(\d+)"), str(content["task_type"]))
    if noted is not None:
        content["task_type"] = noted[1]
        if (found := shorten(base, int(noted[2]))) < int(noted[2]):
            raise RequestError(
                f"The adapter in {folder} is for the first {noted[2]} layers of its base, but this one has {found}."
            )
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[content["peft_type"]]
    config = kind.from_peft_type(**kind.check_kwargs(**content))
    return PeftModel.from_pretrained(base, str(folder), config=config, is_trainable=is_trainable)
