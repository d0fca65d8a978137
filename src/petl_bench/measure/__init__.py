"""What produced a record: versions, hardware, commit; and the settings of what is measured (by `run_costs`)."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from petl_bench.settings import setting


@dataclass
class MeasureConfig:
    """What a run measures. It changes no score."""

    ledger: bool = setting(
        True, "Estimate memory by kind and operations of one update: a second or so, whatever the size of the batch."
    )
    inference: bool = setting(
        True,
        "Latency and throughput of the finished model: a few passes, then at most 3 % of the training time.",
    )
    predictions: bool = setting(
        True,
        "Keep the outputs on every row that is reported on: needed for row-wise tests and for computing further "
        "metrics later.",
    )
    baselines: bool = setting(
        True,
        "Score the most frequent class, and TF-IDF with logistic regression, on the same rows; cached for other runs.",
    )


PACKAGES = ("petl-bench", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "tokenizers", "numpy",
            "scikit-learn", "scipy")  # fmt: skip


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None where one is missing."""
    by_package: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            by_package[package] = None
    return by_package


def hardware(*, on_cuda: bool, num_processes: int) -> dict[str, Any]:
    """Returns the machine's processor, threads and memory, and the CUDA device if the run computes on one.

    Time and memory of a run of several processes are not comparable with those of a single process.
    """
    import torch

    machine: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "logical_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "device": None,
        "num_processes": num_processes,
    }
    if on_cuda:
        machine["device"] = torch.cuda.get_device_name()
    return machine


@cache
def git() -> dict[str, Any] | None:
    """Returns the commit of petl_bench's checkout and whether it has changes; None if installed without one.

    A process asks once, as it runs the code that it has imported.
    """
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


_CGROUP_ROOT, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_memory_bytes(root: Path = _CGROUP_ROOT, own: Path = _OWN_CGROUP) -> int:
    """Memory that this process can still take: what the system has left, or less where control groups limit it.

    Slurm, Kubernetes and Docker limit a job's memory by control groups of version 1 or 2, which the system's count of
    free memory ignores. Limits of the groups above apply as well. Pages of files that were read once count as free.

    Args:
        root: Where the control groups are mounted.
        own: The file that names the groups of this process.
    """
    import psutil

    return max(0, min([psutil.virtual_memory().available, *_left_in_cgroups(root, own)]))


def _left_in_cgroups(root: Path, own: Path) -> Iterator[int]:
    """Yields the bytes left below the limit of each control group of the process, and of each group above it."""
    for folder in _cgroup_folders(root, own):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.high", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            # A file is missing in the other version, and a limit may be the word "max".
            with suppress(OSError, ValueError):
                free = int((folder / limit).read_text()) - int((folder / usage).read_text())
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield free + int(statistics.get(cached, 0))


def _cgroup_folders(root: Path, own: Path) -> Iterator[Path]:
    """The folders of the process's control groups that may limit its memory, and of all groups above them.

    In a container the names may be those of the host, while the mounted groups are the container's: names that do
    not exist are skipped, and the root is always checked.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            top = root / "memory" if controllers else root
            # A group outside of the container's namespace is named by "..".
            inside = Path(name.lstrip("/")) if ".." not in Path(name).parts else Path()
            yield from (top / folder for folder in (inside, *inside.parents))


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
