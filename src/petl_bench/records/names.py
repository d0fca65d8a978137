"""How things are called in records, folders and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def backbone_name(backbone: Mapping[str, Any]) -> str:
    """The backbone's name, or its folder's where `backbone.path` gives one."""
    return Path(backbone["path"]).name if backbone.get("path") else str(backbone["name"])
