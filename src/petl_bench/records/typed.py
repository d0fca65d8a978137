"""Builds dataclasses from plain containers, as JSON gives them, and holds every value to its field's type."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any

# What JSON may give for a type, and its name in a message. A whole number is a number too, a truth value is none.
_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    # Numbers that are not finite are written as null.
    float: ((float, int, type(None)), "a number"),
    list: ((list,), "a list"),
    dict: ((dict,), "an object"),
}


def build(cls: Any, content: Any, path: str = "") -> Any:
    """Builds a dataclass, nested ones included; unknown fields are left out.

    Args:
        cls: The dataclass.
        content: An object of JSON.
        path: Where the object stands, for messages.

    Raises:
        ValueError: naming the field, where one is missing or of another type.
    """
    check(dict, content, path)
    hints, required = _fields(cls)
    prefix = f"{path}." if path else ""
    for name in required:
        if name not in content:
            raise ValueError(f"{prefix}{name} is missing")
    return cls(
        **{name: _convert(hints[name], value, prefix + name) for name, value in content.items() if name in hints}
    )


def _convert(hint: Any, value: Any, path: str) -> Any:
    kind, inner = _parts(hint)
    if kind is Any:
        return value
    if kind is types.UnionType:
        return None if value is None else _convert(inner, value, path)
    if kind not in _TYPES:
        return build(kind, value, path)
    check(kind, value, path)
    if kind is list:
        return [_convert(inner, item, f"{path}[{number}]") for number, item in enumerate(value)]
    if kind is dict:
        return {key: _convert(inner, item, f"{path}.{key}") for key, item in value.items()}
    return value


def check(kind: Any, value: Any, path: str) -> None:
    """Holds a value to one of JSON's types.

    Raises:
        ValueError: naming the field by its path, where the value is of another type.
    """
    allowed, name = _TYPES[kind]
    if type(value) not in allowed:
        found = "null" if value is None else reprlib.repr(value)
        raise ValueError(f"{path or 'it'} is {found}, not {name}")


# Resolving the types takes longer than building the objects.
@functools.cache
def _fields(cls: Any) -> tuple[Mapping[str, Any], list[str]]:
    """The type of each field, and the names of those without a default."""
    hints, fields, missing = typing.get_type_hints(cls), dataclasses.fields(cls), dataclasses.MISSING
    required = [field.name for field in fields if field.default is missing and field.default_factory is missing]
    return {field.name: hints[field.name] for field in fields}, required


@functools.cache
def _parts(hint: Any) -> tuple[Any, Any]:
    """A type without its argument, and the argument: of a list's items, of a mapping's values, of `X | None` X."""
    args = [option for option in typing.get_args(hint) if option is not type(None)]
    kind = typing.get_origin(hint) or hint
    return kind, (args[-1] if args else Any)
