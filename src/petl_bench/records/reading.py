"""How JSON becomes typed records: older schemas are migrated, and every field is held to its type."""

from __future__ import annotations

import copy
import functools
import json
import math
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema, ErrorDetails


T = TypeVar("T")


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
    found = "null" if error["input"] is None else reprlib.repr(error["input"])
    expected = _EXPECTED.get(error["type"])
    return f"{path or 'it'} is {found}, " + (f"not {expected}" if expected else error["msg"])


def finite(value: Any) -> Any:
    """Plain containers with numbers that are not finite as None, which JSON needs."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


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
