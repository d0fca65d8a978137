"""Reads JSON and YAML into typed records: limits their size, checks hashes, migrates schemas, and validates types."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import re
import reprlib
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema, ErrorDetails


T = TypeVar("T")

# Far larger than any record, study or adapter config.
_MOST_BYTES = 64 * 2**20

_MOST_LEVELS = 100

_MOST_NODES = 1_000_000

# Whole numbers with more digits are rejected; up to this length they fit into a float.
_MOST_DIGITS = 300


def read_text(file: Path) -> str:
    """Reads a file that may come from elsewhere.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is not a regular file, is too large, or is not UTF-8 text.
    """
    status = file.stat()
    # Opening a pipe would block until something writes to it; opening a folder raises a specific error.
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES // 2**20} MiB")
    return file.read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: If the text is not JSON, is nested too deeply, or contains a whole number with too many digits.
    """
    try:
        content = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [content]
    for _ in range(_MOST_LEVELS):
        level = [inner for outer in level for inner in _containers(outer)]
    if level:
        raise ValueError("it is nested too deeply")
    return content


def _containers(content: Any) -> list[Any]:
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


class _Loader(yaml.SafeLoader):
    """Reads numbers such as `1e-3` as YAML 1.2 does, reads dates as text, and limits nesting and the number of nodes.

    An alias counts as many nodes as it expands to, so that a few nested aliases cannot exhaust the memory.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level, self._count = 0, 0
        self._counts: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Composes a node with its children."""
        is_alias, mark, before = self.check_event(yaml.AliasEvent), self.peek_event().start_mark, self._count
        self._level += 1
        if self._level > _MOST_LEVELS:
            raise yaml.constructor.ConstructorError(None, None, "it is nested too deeply", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if is_alias and id(node) not in self._counts:
            raise yaml.constructor.ConstructorError(None, None, "an alias stands inside of itself", mark)
        self._count += self._counts[id(node)] if is_alias else 1
        if self._count > _MOST_NODES:
            raise yaml.constructor.ConstructorError(None, None, "its aliases stand for too many values", mark)
        self._counts.setdefault(id(node), self._count - before)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Constructs the mapping of a node; its keys must be unique."""
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), "-+0123456789")


def parse_yaml(text: str) -> Any:
    """Parses YAML into plain values, lists and mappings.

    Raises:
        yaml.YAMLError: If the text is not YAML, is nested too deeply, or expands to too many nodes through aliases.
    """
    return yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)


def yaml_fault(error: yaml.MarkedYAMLError) -> str:
    """Returns where YAML is wrong and why, as text to append to a file name: `, line 3: duplicate key r`."""
    line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return f"{line}: {error.problem or error.context}"


class _NullAllowed:
    """Makes pydantic accept `null` where a number is annotated; pydantic is imported only for validation."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.nullable_schema(handler(source))


# JSON has no infinity and no NaN: numbers that are not finite are written as null and read back as None.
Number = Annotated[float, _NullAllowed()]


def validate(kind: type[T], content: Any, path: str = "") -> T:
    """Builds a dataclass, nested ones included, from parsed JSON.

    Types are strict: a whole number is accepted as a float, but a boolean is not a number and text is never converted.
    Unknown fields are ignored.

    Args:
        kind: The dataclass.
        content: The content of a JSON file, or of a part of it.
        path: The path of the content within its file, for messages.

    Returns:
        An instance of the dataclass.

    Raises:
        ValueError: If a field is missing or has the wrong type; names the path of the first one.
    """
    from pydantic import ValidationError

    try:
        # In strict mode, pydantic accepts an object for a dataclass only if it parses the JSON itself.
        validated: T = _adapter(kind).validate_json(json.dumps(content), strict=True)  # type: ignore[arg-type]
        return validated
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except TypeError as error:
        # YAML has types that JSON lacks.
        raise ValueError(f"{path or 'it'} holds another value than texts, numbers, lists and mappings") from error
    except ValidationError as error:
        raise ValueError(_message(error.errors(include_url=False)[0], path)) from error


# Building a validator takes much longer than using it.
@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


# The expected type of a field, by pydantic's error type.
_EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "list_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
}


def _message(error: ErrorDetails, path: str) -> str:
    """Words a pydantic error as one sentence with the field's path: `time.train_seconds is 'x', not a number`."""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    if error["type"] == "json_invalid":
        # The content is known to be valid JSON, but pydantic has limits of its own.
        cause = str(error.get("ctx", {}).get("error"))
        if "surrogate" in cause:
            return "it holds half of a surrogate pair, which UTF-8 cannot write"
        return "it is nested too deeply" if "recursion" in cause else f"it is no valid JSON ({cause})"
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{path} is not a setting of this version"
    value = "null" if error["input"] is None else reprlib.repr(error["input"])
    expected = _EXPECTED.get(error["type"])
    return f"{path or 'it'} is {value}, " + (f"not {expected}" if expected else error["msg"])


def finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None in plain containers, as JSON requires."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


# The field of a record with the hash of all other fields. Records without it, such as older ones, are not checked.
HASH_FIELD = "content_sha256"


def content_hash(content: Mapping[str, Any]) -> str:
    """Hex sha256 of a record's content without the hash field; independent of the file's field order and layout."""
    rest = {name: value for name, value in content.items() if name != HASH_FIELD}
    try:
        text = json.dumps(rest, sort_keys=True)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return hashlib.sha256(text.encode()).hexdigest()


def with_hash(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content with its hash as the last field."""
    as_read = json.loads(json.dumps({name: value for name, value in content.items() if name != HASH_FIELD}))
    return as_read | {HASH_FIELD: content_hash(as_read)}


def check_hash(content: Any, way_out: str = "make it anew") -> None:
    """Raises ValueError if the content is no object, or has a hash and has changed since that hash was computed."""
    if not isinstance(content, dict):
        raise ValueError(f"it is {reprlib.repr(content)}, not an object: {way_out}")
    if HASH_FIELD in content and content[HASH_FIELD] != content_hash(content):
        raise ValueError(f"its content has changed since it was written ({HASH_FIELD} differs): {way_out}")


SCHEMA_VERSION = 2

# Fields that schema 2 renamed: the old path, and the new name within the same object.
_RENAMED_IN_2 = (
    (("trunk",), "frozen"),
    (("time", "trunk_seconds"), "features_seconds"),
    (("memory", "ledger"), "estimate"),
)


def migrated(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a record in the current schema; the argument is not changed.

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


def corrected(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a record's content with its numbers as they are defined now; the argument is not changed.

    Before `time.cache_seconds` existed, a run that found its features in the cache recorded the time for reading them
    as `time.features_seconds`, and a run without a cache recorded a time there although it computed no features.

    Args:
        content: The content of a record in the current schema, valid or not.
    """
    time, frozen = content.get("time"), content.get("frozen")
    if not isinstance(time, dict) or not isinstance(frozen, dict) or "cache_seconds" in time:
        return content
    if frozen.get("reused") is True:
        time = time | {"features_seconds": None, "cache_seconds": time.get("features_seconds")}
    elif frozen.get("cache") == "off":
        time = time | {"features_seconds": None}
    return content | {"time": time}


# A record keeps its config and hardware as plain dicts, as written. These classes give types to the fields we read.


@dataclass
class _RecordedBackbone:
    name: str
    path: str | None = None


@dataclass
class _RecordedMethod:
    name: str
    # PEFT's name for the method, for methods that PEFT ships.
    type: str = ""


@dataclass
class _RecordedTask:
    name: str


@dataclass
class _RecordedTraining:
    seed: int


@dataclass
class _RecordedTracker:
    project: str | None = None


@dataclass
class RecordedConfig:
    """The fields that are read from a record's config."""

    backbone: _RecordedBackbone
    method: _RecordedMethod
    layers: dict[str, Any]
    task: _RecordedTask
    train: _RecordedTraining
    tracker: _RecordedTracker | None = None


@dataclass
class PartialConfig:
    """The same fields for a run that failed before its config was complete."""

    backbone: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


@dataclass
class RecordedHardware:
    """The fields that are read from a record's hardware."""

    device: str | None = None
    processor: str | None = None
    logical_cores: int | None = None
    num_processes: int = 1
