"""Checkpoint files: written whole or not at all, checked when they are read, the one before kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_PATTERN = "step-*.safetensors"
_KEPT = 2
# Writing takes at most this share of the time.
_MOST_OF_THE_TIME = 0.05
_TENSOR, _TUPLE, _PAIRS = "tensor", "tuple", "pairs"

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: Where they lie; made when the first one is written.
        seconds: At least between two of them; 0: one after every update; None: none is written.
        made_by: What must be the same for a training to go on from here, such as versions of libraries.
    """

    def __init__(self, folder: Path, seconds: float | None, made_by: dict[str, Any]) -> None:
        self.folder, self.seconds, self.made_by = folder, seconds, made_by
        self._next = None if seconds is None else time.monotonic() + seconds

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self._next is not None and time.monotonic() >= self._next

    def write(self, step: int, state: Any) -> None:
        """Keeps a state: nested dicts, lists and tuples of tensors and of what JSON knows.

        A disk that takes no more costs the checkpoint, not the training.
        """
        assert self.seconds is not None
        started = time.monotonic()
        partial = self.folder / f"{os.getpid()}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tensors: dict[str, torch.Tensor] = {}
            content = {"state": _pack(state, tensors), "made_by": self.made_by, "crc32": _checksum(tensors)}
            save_file(tensors, partial, metadata={"content": json.dumps(content)})
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(self.folder / f"step-{step:09d}.safetensors")
            for outdated in self._newest_first()[_KEPT:]:
                outdated.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            _log.warning("no checkpoint could be written to %s (%s): the training goes on", self.folder, error)
        now = time.monotonic()
        pause = max(self.seconds, (now - started) / _MOST_OF_THE_TIME) if self.seconds else 0.0
        self._next = now + pause

    def read(self) -> Any:
        """The newest state that is whole and was made by the same; None where there is none."""
        for file in self._newest_first():
            try:
                return self._read(file)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("the checkpoint %s is left out: %s", file, error)
        return None

    def remove(self) -> None:
        """Deletes them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob(_PATTERN), reverse=True)

    def _read(self, file: Path) -> Any:
        with safe_open(file, "pt") as stream:
            content = json.loads(stream.metadata()["content"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
        if content["made_by"] != json.loads(json.dumps(self.made_by)):
            raise ValueError("it was made by other versions or on another device")
        if content["crc32"] != _checksum(tensors):
            raise ValueError("its checksum is wrong")
        return _unpack(content["state"], tensors)


def _pack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree as JSON, its tensors by name in `tensors`."""
    if isinstance(node, torch.Tensor):
        name, tensor = str(len(tensors)), node.detach().cpu()
        # A file knows no views.
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
    raise TypeError(f"a checkpoint cannot keep a {type(node).__name__}")


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


def _checksum(tensors: dict[str, torch.Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum
