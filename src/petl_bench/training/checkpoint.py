"""The state of a training, and the files that it is written to so that an interrupted run can continue."""

from __future__ import annotations

import json
import logging
import random
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from petl_bench.errors import first_line
from petl_bench.process import atomic_write, file_sha256
from petl_bench.records.schema import HistoryEntry

if TYPE_CHECKING:
    from accelerate import Accelerator

# The number of the update, and a hash of the file's content.
_NAME = "step-{step:09d}-{digest}.safetensors"
_PATTERN = "step-*.safetensors"
_DIGEST_LENGTH = 32
_KEPT = 2
# Writing checkpoints takes at most this share of the training's time.
_MAX_SHARE_OF_TIME = 0.05
_OTHERS = "the backbone's files, versions, kind of device, number of processes or train.cache were others"
# Keys that say what a JSON object stands for in a checkpoint file.
_TENSOR, _TUPLE, _PAIRS = "tensor", "tuple", "pairs"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmUp:
    """What was done by the end of the first updates; zeros for a training without further updates."""

    num_steps: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0


@dataclass
class Progress:
    """What a training has done so far.

    Attributes:
        history: One entry for each evaluation.
        best: Index of the best entry.
        best_weights: The trainable tensors at the best evaluation, on the CPU.
        losses: Loss of each update since the last evaluation; this process's share of it.
        num_steps, num_examples: Updates and examples over all processes, skipped updates included.
        num_skipped: Updates that were skipped because a gradient overflowed in fp16.
        num_tokens, num_padded_tokens: Tokens that this process computed, without and with padding.
        train_seconds: Time of the training without its evaluations.
        compile_seconds: The part of it that torch's compiler took.
        eval_seconds: Time of the evaluations.
        warm_up: The part of these counts that belongs to the first updates.
        resumed_at: Updates after which the training was interrupted and continued by another process.
    """

    history: list[HistoryEntry] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    losses: list[torch.Tensor] = field(default_factory=list)
    num_steps: int = 0
    num_skipped: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    eval_seconds: float = 0.0
    warm_up: WarmUp = field(default_factory=WarmUp)
    resumed_at: list[int] = field(default_factory=list)


# Fields of the progress that differ between processes, as they depend on a process's own rows and clock.
_OWN_PROGRESS = ("losses", "num_tokens", "num_padded_tokens", "train_seconds", "compile_seconds", "eval_seconds",
                 "warm_up")  # fmt: skip


class ExtraState(Protocol):
    """State that a method keeps besides its parameters while it trains."""

    def state_dict(self) -> dict[str, Any]:
        """Returns nested containers of tensors and of values that JSON supports."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class TrainingState:
    """Everything that the next updates depend on, and what was done so far: the content of a checkpoint.

    Args:
        model: The adapted model, as prepared for its device.
        optimizer: The optimizer of the model's trainable parameters.
        schedule: The schedule of the optimizer's learning rates.
        accelerator: The process's device, precision and place among the processes.
        extra: State that the method keeps besides its parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        accelerator: Accelerator,
        extra: ExtraState,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.accelerator, self.extra = accelerator, extra
        self.progress = Progress()

    @property
    def unwrapped_model(self) -> nn.Module:
        """The model without the wrapper of distributed training."""
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all processes as nested containers of tensors and of values that JSON supports.

        The order of the batches follows from the seed and the number of updates, so it needs no state. Every process
        must call this at the same update.
        """
        from accelerate.utils import gather_object

        model, scaler, progress = self.unwrapped_model, self.accelerator.scaler, self.progress
        done = {item.name: getattr(progress, item.name) for item in fields(progress)}
        done["history"], done["warm_up"] = [asdict(entry) for entry in progress.history], asdict(progress.warm_up)
        # Processes exchange tensors on the CPU.
        done["losses"] = [loss.cpu() for loss in progress.losses]
        own = {name: done.pop(name) for name in _OWN_PROGRESS}
        generators = _generator_states(self.accelerator.device)
        return {
            "parameters": {name: value for name, value in model.named_parameters() if value.requires_grad},
            "buffers": dict(model.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "extra": self.extra.state_dict(),
            "progress": done,
            "processes": gather_object([{"progress": own, "generators": generators}]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned for a training with the same settings."""
        model, scaler, device = self.unwrapped_model, self.accelerator.scaler, self.accelerator.device
        load_trainable_weights(model, state["parameters"])
        buffers = dict(model.named_buffers())
        with torch.no_grad():
            for name, tensor in state["buffers"].items():
                buffers[name].copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        self.extra.load_state_dict(state["extra"])
        of_this_process = state["processes"][self.accelerator.process_index]
        saved = state["progress"] | of_this_process["progress"]
        # The list object stays the same, as the run's record refers to it.
        history = self.progress.history
        history[:] = [HistoryEntry(**entry) for entry in saved["history"]]
        warm_up, losses = WarmUp(**saved["warm_up"]), [loss.to(device) for loss in saved["losses"]]
        self.progress = Progress(**saved | {"history": history, "warm_up": warm_up, "losses": losses})
        _restore_generators(of_this_process["generators"], device)


def trainable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of the trainable tensors, on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copies what `trainable_weights` returned back into the model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)


def _generator_states(device: torch.device) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _restore_generators(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


class Checkpoints:
    """The checkpoint files of one training: written completely or not at all, and verified when they are read.

    The name of a file contains a hash of its whole content, which is verified before anything in the file is used. The
    file before the newest is kept, in case the newest turns out to be damaged.

    Args:
        folder: Where the files are; created with the first one.
        seconds: Minimum time between two checkpoints. 0 writes one before every update, None writes none.
        made_by: Values that must be equal for a training to continue from a checkpoint, such as versions of libraries.
    """

    def __init__(self, folder: Path, seconds: float | None, made_by: dict[str, Any]) -> None:
        self.folder, self.seconds, self.made_by = folder, seconds, made_by
        self._next = None if seconds is None else time.monotonic() + seconds

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return self._next is not None and time.monotonic() >= self._next

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Writes a state: nested dicts, lists and tuples of tensors and of values that JSON supports.

        On a full disk the checkpoint is left out and the training continues.
        """
        assert self.seconds is not None
        started = time.monotonic()
        tensors: dict[str, torch.Tensor] = {}
        content = json.dumps({"state": _pack(state, tensors), "made_by": self.made_by})
        newest = self.folder / "newest.safetensors"
        try:
            with atomic_write(newest) as partial:
                save_file(tensors, partial, metadata={"content": content})
            newest.replace(self.folder / _NAME.format(step=step, digest=_digest(newest)))
            for outdated in self._newest_first()[_KEPT:]:
                outdated.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                newest.unlink(missing_ok=True)
            _log.warning("no checkpoint could be written to %s (%s): the training goes on", self.folder, error)
        now = time.monotonic()
        pause = max(self.seconds, (now - started) / _MAX_SHARE_OF_TIME) if self.seconds else 0.0
        self._next = now + pause

    def read(self) -> dict[str, Any] | None:
        """Returns the newest state that is undamaged and has the same `made_by`, or None if there is none."""
        for file in self._newest_first():
            try:
                return self._read(file)
            except (OSError, ValueError) as error:
                _log.warning("the checkpoint %s is ignored: %s", file, first_line(error))
        return None

    def remove(self) -> None:
        """Deletes all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob(_PATTERN), reverse=True)

    def _read(self, file: Path) -> dict[str, Any]:
        if _digest(file) != file.stem.rpartition("-")[2]:
            raise ValueError("its content has changed since it was written")
        with safe_open(file, "pt") as stream:
            content = json.loads(stream.metadata()["content"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        if content["made_by"] != json.loads(json.dumps(self.made_by)):
            raise ValueError(_OTHERS)
        state: dict[str, Any] = _unpack(content["state"], tensors)
        return state


def _pack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Returns the nested containers as JSON values, and adds the tensors in them to `tensors` by name."""
    if isinstance(node, torch.Tensor):
        name, tensor = str(len(tensors)), node.detach().cpu()
        # safetensors stores no views of larger tensors.
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        tensors[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(node, dict):
        return {_PAIRS: [[_pack(key, tensors), _pack(value, tensors)] for key, value in node.items()]}
    if isinstance(node, tuple):
        return {_TUPLE: [_pack(item, tensors) for item in node]}
    if isinstance(node, list):
        return [_pack(item, tensors) for item in node]
    if node is None or isinstance(node, str | int | float):
        return node
    raise TypeError(f"a checkpoint cannot hold a {type(node).__name__}")


def _unpack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpack(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _TUPLE:
        return tuple(_unpack(item, tensors) for item in content)
    return {_unpack(key, tensors): _unpack(value, tensors) for key, value in content}


def _digest(file: Path) -> str:
    return file_sha256(file)[:_DIGEST_LENGTH]
