"""Migrates records of older schemas: each step turns the content of one version into that of the next."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

SCHEMA_VERSION = 2

# Fields that schema 2 renamed: the old path, and the new name within the same object.
_RENAMED_IN_2 = (
    (("trunk",), "frozen"),
    (("time", "trunk_seconds"), "features_seconds"),
    (("memory", "ledger"), "estimate"),
)


def migrated(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a record in the present schema; the content that is given is not changed.

    Args:
        content: The content of a record's file.

    Raises:
        ValueError: If its schema version is unknown to this program.
    """
    version = content.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(f"schema_version {version} is not one of 1..{SCHEMA_VERSION}: upgrade petl-bench")
    for step in _STEPS[version - 1 :]:
        content = step(copy.deepcopy(content))
    return content


def _to_2(content: dict[str, Any]) -> dict[str, Any]:
    for (*parents, old), new in _RENAMED_IN_2:
        node: Any = content
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict) and old in node:
            renamed = {new if key == old else key: value for key, value in node.items()}
            node.clear()
            node |= renamed
    return content | {"schema_version": 2}


_STEPS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (_to_2,)
