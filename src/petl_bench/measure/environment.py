"""What produced a record: versions, hardware, commit; and the settings of what is measured."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass
class MeasureConfig:
    """What a run measures; conf/config.yaml says what each costs. It changes no score."""

    ledger: bool = True
    inference: bool = True
    predictions: bool = True


PACKAGES = ("petl-bench", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "tokenizers", "numpy",
            "scikit-learn", "scipy")  # fmt: skip


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None where one is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def hardware(*, on_cuda: bool, num_processes: int) -> dict[str, Any]:
    """The machine: processor, threads, memory, the CUDA device where the run computes on one.

    Time and memory of a run of several processes are not comparable with those of one.
    """
    import torch

    found: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "logical_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "device": None,
        "num_processes": num_processes,
    }
    if on_cuda:
        found["device"] = torch.cuda.get_device_name()
    return found


def git() -> dict[str, Any] | None:
    """Commit of petl_bench's own checkout and whether it is changed; None where it is installed without one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
