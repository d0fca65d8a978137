"""Keeps a trained model beside its record, and loads it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from petl_bench.backbones.load import Backbone
from petl_bench.errors import RequestError, RunError
from petl_bench.records.store import ADAPTER_FOLDER, MODEL_FOLDER, RunFolder

if TYPE_CHECKING:
    from torch import nn

# PEFT keeps these as sets, whose order changes from process to process.
_SET_FIELDS = ("target_modules", "exclude_modules", "feedforward_modules")


def save_trained(folder: RunFolder, model: nn.Module, backbone: Backbone) -> int:
    """Writes `adapter/` in PEFT's format, or `model/` in transformers' where the method is no PEFT tuner.

    Returns:
        Bytes of the weights that were written.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        with folder.replace_folder(ADAPTER_FOLDER) as target:
            # "auto" would ask the hub whether the vocabulary was enlarged.
            model.save_pretrained(str(target), save_embedding_layers=False)
            _sort_sets(target / "adapter_config.json")
        return _weights_bytes(folder.path / ADAPTER_FOLDER)
    with folder.replace_folder(MODEL_FOLDER) as target:
        model.save_pretrained(target)  # type: ignore[operator]
        backbone.load_tokenizer().save_pretrained(str(target))
    return _weights_bytes(folder.path / MODEL_FOLDER)


def load_trained(folder: RunFolder, model: nn.Module) -> nn.Module:
    """Loads what `save_trained` wrote.

    Args:
        folder: The run's folder.
        model: The backbone with a fresh head, as it was before it was adapted.

    Raises:
        RequestError: where the run kept no weights.
        RunError: where they are broken.
    """
    from safetensors import SafetensorError

    adapter, whole = folder.path / ADAPTER_FOLDER, folder.path / MODEL_FOLDER
    try:
        if adapter.is_dir():
            from peft import PeftModel

            return PeftModel.from_pretrained(model, str(adapter))  # type: ignore[arg-type]
        if whole.is_dir():
            from transformers import AutoModelForSequenceClassification

            return AutoModelForSequenceClassification.from_pretrained(whole, config=model.config, use_safetensors=True)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"The weights in {folder.path} cannot be read ({error}): repeat the run with --force."
        ) from error
    raise RequestError(
        f"{folder.path} holds no weights: it was run with train.save_weights=false; repeat it with "
        "`--force train.save_weights=true`."
    )


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _sort_sets(file: Path) -> None:
    """Same run, same bytes."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for name in _SET_FIELDS:
        if isinstance(content.get(name), list):
            content[name].sort()
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
