"""Dataclasses to plain values and back: the one way in which documents, recipes and checkpoints are read."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from fffconvert.errors import FFFError

Record = TypeVar("Record")
Author = Literal["person", "program", "checkpoint"]
_EXPECTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def plain(record: Any) -> Any:
    """A record as JSON and YAML have it: dictionaries, lists, text, numbers, truth values and None.

    Enumerations become their values, paths text, tuples lists, and numbers that JSON lacks (NaN, infinity)
    None.

    Args:
        record: A dataclass, or dictionaries and lists of such.
    """
    return msgspec.json.decode(msgspec.json.encode(record, enc_hook=_encoded))


def read(kind: type[Record], values: Any, where: str = "", author: Author = "person") -> Record:
    """A record from plain values; fields with a default may be missing.

    Of what a person wrote, unknown keys are refused, a single value may stand for a list of one, and numbers
    may be text, as YAML reads 4e-5. Unknown keys of programs are ignored, for another release may write
    more; those of a checkpoint warn, for they may change what it computes.

    Args:
        kind: A dataclass.
        values: Its fields by name.
        where: What is read, with which messages begin; empty for a document of its own.
        author: Who wrote it.

    Raises:
        FFFError: A key is unknown or missing, or a value of another kind or out of range; it says where, what
            was found, and what was expected.
    """
    if author != "program":
        values = _tidied(kind, values, where, author)
    try:
        return msgspec.convert(values, kind, dec_hook=_decoded)
    except msgspec.ValidationError as error:
        again = "; convert the model, or deploy it, again" if author == "checkpoint" else ""
        raise FFFError(f"{_fault(kind, values, where, error)}{again}") from None


def _encoded(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)  # numbers of numpy, and paths


def _decoded(kind: type, value: Any) -> Any:
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"no {kind.__name__}")
    return Path(value)


def _tidied(kind: Any, value: Any, where: str, author: Author) -> Any:
    """The values without unknown keys and, of a person's, in their proper form."""
    kind, by_hand = _present(kind, value), author == "person"
    if _is_record(kind) and isinstance(value, Mapping):
        value = _known(kind, value, where, author)
    elif get_origin(kind) is tuple and by_hand and not isinstance(value, list | tuple | Mapping | NoneType):
        value = [value]
    elif kind in (int, float) and by_hand:
        return _number(value)
    parts = {
        name: _tidied(inner, part, _at(where, name), author) for name, inner, part in _parts(kind, value)
    }
    return value if not parts else parts if isinstance(value, Mapping) else list(parts.values())


def _number(value: Any) -> Any:
    """A number, as YAML reads 4e-5 and 1e5 as text, and 1.0e+5 as a fraction; anything else as it is."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known(kind: Any, value: Mapping[Any, Any], where: str, author: Author) -> Mapping[Any, Any]:
    unknown = [key for key in value if key not in _hints(kind)]
    if unknown and author == "person":
        near = get_close_matches(str(unknown[0]), _hints(kind), 1, 0.0)[0]
        raise FFFError(f"unknown key {_at(where, unknown[0])}; did you mean {_at(where, near)}?")
    if unknown:
        listed = ", ".join(sorted(map(str, unknown)))
        warnings.warn(f"ignored unknown keys of {where or kind.__name__}: {listed}", stacklevel=4)
    return {key: part for key, part in value.items() if key not in unknown}


def _fault(kind: Any, value: Any, where: str, error: msgspec.ValidationError) -> str:
    """What is wrong, from the innermost part that does not fit."""
    kind = _present(kind, value)
    for name, inner, part in _parts(kind, value):
        try:
            msgspec.convert(part, inner, dec_hook=_decoded)
        except msgspec.ValidationError as deeper:
            return _fault(inner, part, _at(where, name), deeper)
    if _is_record(kind) and isinstance(value, Mapping):
        missing = [field.name for field in dataclasses.fields(kind) if _required(field, value)]
        if missing:
            return f"{where or 'it'} lacks {', '.join(missing)}"
        return f"{where}: {error.__cause__}" if where else str(error.__cause__)
    return f"{where or 'it'} is {repr(value)[:60]}; expected {_expected(kind)}"


def _parts(kind: Any, value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The parts of a value: name, kind, value."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(value, Mapping):
        if _is_record(kind):
            hints = _hints(kind)
            yield from ((name, hints[name], part) for name, part in value.items() if name in hints)
        elif origin in (dict, Mapping):
            yield from ((name, inner[1], part) for name, part in value.items())
    elif isinstance(value, list | tuple) and origin in (tuple, list, Sequence):
        one = inner[0] if origin is not tuple or inner[-1] is Ellipsis else None
        kinds: Sequence[Any] = inner if one is None else [one] * len(value)
        if len(kinds) == len(value):
            yield from zip(range(len(value)), kinds, value, strict=True)


def _present(kind: Any, value: Any) -> Any:
    """Of an optional kind, that which is not None."""
    if get_origin(kind) in (Union, UnionType) and value is not None:
        return next(part for part in get_args(kind) if part is not NoneType)
    return kind


def _is_record(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _required(field: dataclasses.Field[Any], value: Mapping[Any, Any]) -> bool:
    without = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return without and field.name not in value


def _expected(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) in (tuple, list, Sequence):
        fixed = get_origin(kind) is tuple and inner[-1] is not Ellipsis
        return f"a list of {len(inner)}" if fixed else "a list"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    return _EXPECTED.get(kind, "keys and values")


def _at(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
