"""How things are called in records, folders and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def backbone_name(backbone: Mapping[str, Any]) -> str:
    """The backbone's name, or its folder's where `backbone.path` gives one."""
    return Path(backbone["path"]).name if backbone.get("path") else str(backbone["name"])


def run_name(config: Mapping[str, Any], key: str) -> str:
    """The run's readable name, which is also its folder's."""
    backbone, seed = backbone_name(config["backbone"]), config["train"]["seed"]
    return f"{config['task']['name']}-{config['method']['name']}-{backbone}-s{seed}-{key}"


def method_label(method: Mapping[str, Any]) -> str:
    """The method's name; of PEFT's shelf, the type with it."""
    return f"{method['name']}:{method['type'].lower()}" if "type" in method else str(method["name"])
