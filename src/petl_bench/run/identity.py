"""The identity of a run: its key, its name, its folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from petl_bench.backbones.source import model_files
from petl_bench.config import RunConfig, resolved
from petl_bench.errors import RequestError
from petl_bench.process import file_sha256, user_path, without_home
from petl_bench.records.run_key import backbone_name, run_key, run_name
from petl_bench.records.store import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_adapter
from petl_bench.tasks.ood import ood_files
from petl_bench.tasks.tables import parquet_files, split_files
from petl_bench.trackers import RunIdentity, named

# Settings that name places on this machine.
RECORDED_PATHS = (
    "data_root",
    "runs_dir",
    "backbone.path",
    "method.init",
    "task.train_file",
    "task.validation_file",
    "task.test_file",
)

# What file systems allow, less the endings of files that are being written.
_LONGEST_FOLDER = 220


def identify(cfg: RunConfig) -> RunIdentity:
    """Names a run by its settings and by the content of the local files that it reads.

    Args:
        cfg: The whole config. Where a result does not depend on a setting, neither does the key.

    Returns:
        Key, name, tracker group and folder of the run, and its resolved config.
    """
    config = resolved(cfg).to_dict()
    # Of the adapter to start from the content matters, not the place.
    start = {} if cfg.method.start is None else {"init": "adapter"}
    key = run_key(config | {"method": config["method"] | start}, _content_hashes(cfg))
    if (length := len(os.fsencode(run_name(config, key)))) > _LONGEST_FOLDER:
        raise RequestError(
            f"task.name={cfg.task.name}, the method and the backbone {backbone_name(config['backbone'])} give a name "
            f"of {length} bytes, too long for a folder ({_LONGEST_FOLDER}): shorten task.name, or rename the folder of "
            "the backbone."
        )
    for path in RECORDED_PATHS:
        group, _, name = path.rpartition(".")
        settings = config[group] if group else config
        settings[name] = settings[name] and without_home(settings[name])
    return named(config, key, Path(cfg.runs_dir).expanduser() / run_name(config, key))


def local_files(cfg: RunConfig) -> dict[str, Path]:
    """Finds the local files whose content belongs to the run: rows, `backbone.path`, and `method.init`.

    Args:
        cfg: The whole config.

    Returns:
        Paths by the file's part in the run, such as `train` or `mnli/train.parquet`. Files may be missing.
    """
    task = cfg.task
    found: dict[str, Path] = {}
    in_folder = task.source == "folder" and cfg.data_root is not None
    if task.source == "files" or in_folder:
        named = {"train": task.train_file, "validation": task.validation_file, "test": task.test_file}
        for role, file in named.items():
            if file:
                path = user_path(f"{cfg.data_root}/{file}" if in_folder else file, f"task.{role}_file")
                found |= {f"{role}/{part.name}": part for part in parquet_files(path)} or {role: path}
    if task.source == "hub" and cfg.data_root is not None:
        splits = [task.train_split, task.validation_split, *([task.test_split] if task.protocol == "test" else [])]
        wanted = [(task.subset, split) for split in splits]
        wanted += [(extra.subset, extra.split) for extra in task.also_report.values()]
        root = user_path(cfg.data_root, "data_root")
        found |= {
            file.name if subset is None else f"{subset}/{file.name}": file
            for subset, split in wanted
            for file in split_files(root, subset, split)
        }
    found |= {f"ood/{file.name}": file for file in ood_files(task, cfg.data_root)}
    if cfg.backbone.path is not None:
        folder = user_path(cfg.backbone.path, "backbone.path")
        found |= model_files(folder)
    if cfg.method.start is not None:
        folder = find_adapter(cfg.method.start)
        found |= {f"init/{name}": folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    return found


def _content_hashes(cfg: RunConfig) -> dict[str, str]:
    """Hashes the local files; one that is missing or cannot be read is an error only when its rows are wanted."""
    hashes = {}
    for name, file in sorted(local_files(cfg).items()):
        with suppress(OSError):
            if file.is_file():
                hashes[name] = file_sha256(file)
    return hashes
