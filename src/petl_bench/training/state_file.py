"""States on disk: memory-mapped, checked when they are opened, replaced as a whole."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import torch

_CHUNK = 2**24
# After so long nobody is still writing a file that is not part of an entry.
_ABANDONED_SECONDS = 24 * 3600

_log = logging.getLogger(__name__)


class StateFile:
    """One entry of the cache on disk: `<key>.states`, and `<key>.json`, which describes it and is written last.

    Args:
        folder: Of the cache.
        key: Names the entry.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.data, self.description = folder / f"{key}.states", folder / f"{key}.json"
        self.partial = folder / f"{key}.{uuid.uuid4().hex}.partial"

    def create(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in a new file; the space is taken at once, since a full disk would kill the process later."""
        size = shape[0] * shape[1] * dtype.itemsize
        with self.partial.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                stream.truncate(size)
        return _mapped(self.partial, shape, dtype, writable=True)

    def finish(self, tensor: torch.Tensor) -> None:
        """Makes the entry valid, once its tensor is filled."""
        content = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "crc32": _crc(tensor),
        }
        self.partial.replace(self.data)
        self.partial.write_text(json.dumps(content), encoding="utf-8")
        self.partial.replace(self.description)

    def read(self) -> torch.Tensor | None:
        """The states; None where there are none, or broken ones."""
        try:
            content = json.loads(self.description.read_text(encoding="utf-8"))
            shape, dtype = tuple(content["shape"]), getattr(torch, content["dtype"])
            if self.data.stat().st_size != shape[0] * shape[1] * dtype.itemsize:
                raise ValueError("its size is wrong")
            tensor = _mapped(self.data, shape, dtype, writable=False)
            if _crc(tensor) != content["crc32"]:
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            _log.warning("the cached states in %s are broken and made anew (%s)", self.data, error)
            self.remove()
            return None
        with suppress(OSError):
            os.utime(self.description)
        return tensor

    def remove(self) -> None:
        """Deletes the entry; processes that have it mapped keep it."""
        for file in (self.description, self.data):
            with suppress(OSError):
                file.unlink()

    def discard(self) -> None:
        """Deletes what `create` began."""
        with suppress(OSError):
            self.partial.unlink()


def _mapped(file: Path, shape: tuple[int, int], dtype: torch.dtype, *, writable: bool) -> torch.Tensor:
    return torch.from_file(str(file), shared=writable, size=shape[0] * shape[1], dtype=dtype).view(shape)


def _crc(tensor: torch.Tensor) -> int:
    content = tensor.view(torch.uint8).flatten().numpy()
    # Read in another shape or type, the same bytes are other states.
    checksum = zlib.crc32(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    for start in range(0, len(content), _CHUNK):
        checksum = zlib.crc32(content[start : start + _CHUNK].data, checksum)
    return checksum


def prune(folder: Path, budget: int, in_use: Collection[str]) -> None:
    """Deletes the entries used longest ago until those that are left fit the budget, and what killed processes left.

    Args:
        folder: Of the cache.
        budget: Bytes.
        in_use: Keys of entries that stay.
    """
    entries = []
    for description in folder.glob("*.json"):
        entry = StateFile(folder, description.stem)
        with suppress(OSError):  # another process deletes too
            entries.append((description.stat().st_mtime, entry.data.stat().st_size, entry))
    whole = {entry.data for _, _, entry in entries}
    for file in (*folder.glob("*.partial"), *folder.glob("*.states")):
        with suppress(OSError):
            if file not in whole and time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink()
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries, key=lambda one: one[0]):
        if total > budget and entry.key not in in_use:
            entry.remove()
            total -= size
