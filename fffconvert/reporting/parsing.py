"""Plain values of a JSON document to dataclasses, with a line for whatever does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fffconvert.errors import FFFError

Kind = TypeVar("Kind")


def parse(kind: type[Kind], value: Any, where: str) -> Kind:
    """Read a dataclass whose fields are numbers, strings, tuples, dictionaries and other dataclasses.

    Unknown keys are ignored: documents may hold more than a report shows.

    Args:
        kind: The dataclass.
        value: Its fields by name; those with a default may be missing.
        where: Says in messages what is read.

    Raises:
        FFFError: A field is missing or of another type.
    """
    found: Kind = _read(kind, value, where)
    return found


def _read(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _fields(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        return _read(next(part for part in inner if part is not NoneType), value, where)
    if origin is tuple:
        return _tuple(inner, value, where)
    if origin is dict:
        _expect(isinstance(value, Mapping), where, value, "an object")
        return {key: _read(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    _expect(
        isinstance(value, kind) or (kind is float and isinstance(value, int)),
        where,
        value,
        {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}[kind],
    )
    return float(value) if kind is float else value


def _fields(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, Mapping), where, value, "an object")
    hints, found = _hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = _read(hints[field.name], value[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise FFFError(f"{where} lacks {field.name!r}")
    return kind(**found)


def _tuple(inner: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, Sequence) and not isinstance(value, str), where, value, "a list")
    if inner[-1] is Ellipsis:
        return tuple(_read(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    _expect(len(value) == len(inner), where, value, f"a list of {len(inner)}")
    return tuple(_read(kind, item, where) for kind, item in zip(inner, value, strict=True))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _expect(true: bool, where: str, value: Any, what: str) -> None:
    if not true:
        raise FFFError(f"{where} is {str(value)[:40]!r}; expected {what}")
