"""The identity of a run: a hash of the settings that can change its outcome, and the names of runs and methods."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def backbone_name(backbone: Mapping[str, Any]) -> str:
    """The backbone's name: its folder's name if `backbone.path` is set, its name on the hub with `backbone=hub`."""
    if backbone.get("path"):
        return Path(backbone["path"]).name
    return str(backbone["hub_id"]).rpartition("/")[2] if backbone["name"] == "hub" else str(backbone["name"])


def run_name(config: Mapping[str, Any], key: str) -> str:
    """The run's readable name, which is also the name of its folder."""
    backbone, seed = backbone_name(config["backbone"]), config["train"]["seed"]
    return f"{config['task']['name']}-{config['method']['name']}-{backbone}-s{seed}-{key}"


def method_label(method: Mapping[str, Any]) -> str:
    """The method's name, followed by the type for methods that PEFT ships, e.g. `peft:ia3`."""
    return f"{method['name']}:{method['type'].lower()}" if "type" in method else str(method["name"])


# Version 2: frozen layers below the lowest trained one run without dropout.
KEY_VERSION = 2

KEY_LENGTH = 12

# Training settings that change no score: what is saved, and where the features of the frozen layers are cached. The
# cache does change times, so a record only satisfies requests for its own cache mode: see `Record.answers`.
WITHOUT_EFFECT = ("save_weights", "cache", "cache_memory", "cache_disk", "checkpoint_seconds")

# Paths, trackers and licences do not change the outcome. The content of the files does, so that is hashed instead.
_LOCATIONS = (
    ("data_root",),
    ("runs_dir",),
    ("force",),
    # Measured in addition to the run.
    ("measure",),
    ("tracker",),
    # Takes effect through the settings that it sets.
    ("recipe",),
    ("backbone", "license"),
    ("backbone", "path"),
    ("task", "train_file"),
    ("task", "validation_file"),
    ("task", "test_file"),
    # Take effect only through train.learning_rate and train.head_learning_rate.
    ("method", "default_learning_rate"),
    ("method", "default_head_learning_rate"),
    *(("train", name) for name in WITHOUT_EFFECT),
)


def is_location(setting: str) -> bool:
    """Whether a setting, given by its override name, cannot change the outcome; recipes can, through what they set."""
    path = tuple(setting.split("."))
    return path[0] != "recipe" and any(path[: len(location)] == location for location in _LOCATIONS)


# Settings that were added later, each with the value that leaves the keys of older records unchanged.
ADDED_LATER: dict[tuple[str, ...], Any] = {
    ("train", "gradient_checkpointing"): False,
    ("train", "compile"): False,
    ("train", "last_layer"): "all",
    ("train", "emulate_bf16"): False,
    ("train", "class_weights"): "none",
    ("backbone", "dtype"): "fp32",
    ("backbone", "pooling"): None,
    ("task", "test_file"): None,
    ("task", "label_separator"): ",",
    ("task", "threshold"): 0.5,
    ("task", "units"): "words",
    ("task", "rows_per_class"): None,
    ("task", "class_share"): None,
    ("task", "unlabelled"): [],
    ("task", "transform"): None,
    ("task", "fewclue_split"): None,
    ("task", "ood"): None,
    ("task", "ood_share"): None,
    ("task", "held_out_draw"): "random",
    ("task", "group_column"): None,
    ("method", "last_router"): "learned",
    ("method", "init"): None,
}

# Values that enter the key as another value, so that the keys of older records stay valid: those keys contain `auto`
# unresolved, mostly from runs on a CPU.
_WRITTEN_AS = {("train", "device"): {"cpu": "auto"}}


def run_key(config: Mapping[str, Any], content_hashes: Mapping[str, str]) -> str:
    """Returns the run's key, 12 hexadecimal digits.

    Args:
        config: The whole resolved config as plain containers.
        content_hashes: Hashes of the local files that the run reads, by purpose.
    """
    identity = copy.deepcopy(dict(config))
    if identity.get("backbone", {}).get("path"):
        # The local folder replaces all of these.
        for name in ("name", "hub_id", "revision", "package", "package_folder", "sha256", "architecture", "model_type"):
            identity["backbone"].pop(name, None)
    for *parents, last in _LOCATIONS:
        _group(identity, parents).pop(last, None)
    for (*parents, last), default in ADDED_LATER.items():
        if _group(identity, parents).get(last, default) == default:
            _group(identity, parents).pop(last, None)
    for (*parents, last), names in _WRITTEN_AS.items():
        if (value := _group(identity, parents).get(last)) in names:
            _group(identity, parents)[last] = names[value]
    text = json.dumps([KEY_VERSION, identity, dict(content_hashes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _group(config: dict[str, Any], names: list[str]) -> dict[str, Any]:
    for name in names:
        config = config.get(name, {})
    return config


@dataclass(frozen=True)
class RunIdentity:
    """The names of a run.

    Attributes:
        key: The run key, also used as the tracker's run id.
        name: The readable name.
        group: Method x task x backbone: runs that differ only in the seed.
        job_type: The method.
        folder: The run's folder.
        config: The whole config.
    """

    key: str
    name: str
    group: str
    job_type: str
    folder: Path
    config: dict[str, Any]


def identity_of(config: dict[str, Any], key: str, folder: Path) -> RunIdentity:
    """Returns the identity of a run whose key is known, such as that of a record; reads no file."""
    method = method_label(config["method"])
    return RunIdentity(
        key=key,
        name=run_name(config, key),
        group=f"{method}-{config['task']['name']}-{backbone_name(config['backbone'])}",
        job_type=method,
        folder=folder,
        config=config,
    )
