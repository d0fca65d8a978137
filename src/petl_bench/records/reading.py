"""How JSON and YAML become typed records: bounded, checked by their hashes, migrated, every field held to its type."""

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

# Far more than a record, a study or the config of an adapter holds.
_MOST_BYTES = 64 * 2**20

_MOST_LEVELS = 100

_MOST_NODES = 1_000_000

# More than those of any float.
_MOST_DIGITS = 300


def read_text(file: Path) -> str:
    """Reads a file that may come from elsewhere.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no regular file, too large, or no text in UTF-8.
    """
    status = file.stat()
    # Opening a pipe would wait for somebody to write; a folder has an error of its own.
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES // 2**20} MiB")
    return file.read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """The content of JSON.

    Raises:
        ValueError: If it is none, nested too deeply, or holds more than can be computed with.
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
    """Reads numbers such as `1e-3` as YAML 1.2 does, dates as text, and no more than a study can need.

    An alias counts as all that it stands for, so that a few nested ones cannot fill the memory.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level, self._count = 0, 0
        self._counts: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Composes a node with all that is in it."""
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
        """The mapping of a node, whose keys must differ."""
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
    """The content of YAML: plain values, lists and mappings.

    Raises:
        yaml.YAMLError: If it is none, nested too deeply, or its aliases stand for too much.
    """
    return yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)


def yaml_fault(error: yaml.MarkedYAMLError) -> str:
    """Where YAML is wrong and why, to follow a file's name: `, line 3: duplicate key r`."""
    line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return f"{line}: {error.problem or error.context}"


class _NullAllowed:
    """Tells pydantic that `null` may stand where a number is annotated; imports pydantic only when validating."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.nullable_schema(handler(source))


# JSON has no infinity and no NaN: a number that is not finite is written as null, and is read back as None.
Number = Annotated[float, _NullAllowed()]


def validate(kind: type[T], content: Any, path: str = "") -> T:
    """Builds a dataclass, nested ones included, from what JSON holds.

    Types are strict: a whole number may stand for a float, but a boolean is no number and text is never converted.
    Unknown fields are ignored.

    Args:
        kind: The dataclass.
        content: The content of a JSON file, or of a part of it.
        path: Where the content stands in its file, for messages.

    Returns:
        An instance of the dataclass.

    Raises:
        ValueError: Naming the first field that is missing or has another type, by its path.
    """
    from pydantic import ValidationError

    try:
        # pydantic accepts an object for a dataclass in strict mode only when it reads JSON itself.
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


# What a field should have been, by pydantic's error types.
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
    """One sentence from an error of pydantic, with the field's path, e.g. `time.train_seconds is 'x', not a number`."""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    if error["type"] == "json_invalid":
        # The content was JSON already, so this is pydantic's limit of nesting.
        return "it is nested too deeply"
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{path} is not a setting of this version"
    value = "null" if error["input"] is None else reprlib.repr(error["input"])
    expected = _EXPECTED.get(error["type"])
    return f"{path or 'it'} is {value}, " + (f"not {expected}" if expected else error["msg"])


def finite(value: Any) -> Any:
    """Plain containers with numbers that are not finite as None, which JSON needs."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


# The field of a record that holds the hash of all others. Records without it, such as older ones, are not checked.
HASH_FIELD = "content_sha256"


def content_hash(content: Mapping[str, Any]) -> str:
    """Hex sha256 of a record's content, whatever the order and the layout of its file; the hash itself left out."""
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


def check_hash(content: Mapping[str, Any], way_out: str = "make it anew") -> None:
    """Raises ValueError if the content holds a hash and is not what it was when that was made."""
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


def corrected(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a record in the present schema with its numbers as they are defined now; what is given is not changed.

    Before `time.cache_seconds` existed, a run that found its cached features recorded the time of reading them as
    `time.features_seconds`, and a run without a cache a time in which it computed none.

    Args:
        content: The content of a record in the present schema, valid or not.
    """
    time, frozen = content.get("time"), content.get("frozen")
    if not isinstance(time, dict) or not isinstance(frozen, dict) or "cache_seconds" in time:
        return content
    if frozen.get("reused") is True:
        time = time | {"features_seconds": None, "cache_seconds": time.get("features_seconds")}
    elif frozen.get("cache") == "off":
        time = time | {"features_seconds": None}
    return content | {"time": time}


# The config and the hardware of a record are kept as they were written. These classes type the fields that are read.


@dataclass
class _RecordedBackbone:
    name: str
    path: str | None = None


@dataclass
class _RecordedMethod:
    name: str
    # PEFT's name of the method, for methods that PEFT ships.
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
    """What is read of a record's config."""

    backbone: _RecordedBackbone
    method: _RecordedMethod
    layers: dict[str, Any]
    task: _RecordedTask
    train: _RecordedTraining
    tracker: _RecordedTracker | None = None


@dataclass
class PartialConfig:
    """The same of a run that failed before its config was complete."""

    backbone: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


@dataclass
class RecordedHardware:
    """What is read of a record's hardware."""

    device: str | None = None
    processor: str | None = None
    logical_cores: int | None = None
    num_processes: int = 1
