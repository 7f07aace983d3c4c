"""Dataclasses to plain values and back: the one way in which documents, recipes and checkpoints are read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
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


def load(kind: type[Record], path: Path, author: Author = "program") -> Record:
    """A record from a JSON file.

    Raises:
        OSError, ValueError: The file cannot be read, is no JSON, or holds something else; see `read`.
    """
    return read(kind, json.loads(path.read_text(encoding="utf-8")), path.name, author)


def _encoded(value: Any) -> Any:
    if isinstance(value, str | Path):  # torch's version is a kind of text of its own
        return str(value)
    if hasattr(value, "item"):  # a number of numpy's
        return value.item()
    raise TypeError(f"{type(value).__name__} is no plain value")


def _decoded(kind: type, value: Any) -> Any:
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"no {kind.__name__}")
    return Path(value)


def _tidied(kind: Any, value: Any, where: str, author: Author) -> Any:
    """The values without unknown keys and, of a person's, in their proper form."""
    kind, by_hand = _present(kind, value), author == "person"
    if _is_record(kind) and isinstance(value, Mapping):
        known = _hints(kind)
        unknown = [key for key in value if key not in known]
        if unknown and by_hand:
            near = get_close_matches(str(unknown[0]), known, 1, 0.0)[0]
            raise FFFError(f"unknown key {_at(where, unknown[0])}; did you mean {_at(where, near)}?")
        if unknown:
            listed = ", ".join(sorted(map(str, unknown)))
            warnings.warn(f"ignored unknown keys of {where or 'it'}: {listed}", stacklevel=3)
    elif by_hand and kind in (int, float):
        return _number(value)
    elif by_hand and get_origin(kind) is tuple and not isinstance(value, list | tuple | Mapping | NoneType):
        value = [value]
    parts = {n: _tidied(inner, part, _at(where, n), author) for n, inner, part in _parts(kind, value)}
    if isinstance(value, Mapping):
        return {**value, **parts}
    return list(parts.values()) if parts else value


def _number(value: Any) -> Any:
    """A number, as YAML reads 4e-5 and 1e5 as text, and 1.0e+5 as a fraction; anything else as it is."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fault(kind: Any, value: Any, where: str, error: msgspec.ValidationError) -> str:
    """What is wrong, from the innermost part that does not fit."""
    kind = _present(kind, value)
    for name, inner, part in _parts(kind, value):
        try:
            msgspec.convert(part, inner, dec_hook=_decoded)
        except msgspec.ValidationError as deeper:
            return _fault(inner, part, _at(where, name), deeper)
    if _is_record(kind) and isinstance(value, Mapping):
        none = dataclasses.MISSING
        needed = [f.name for f in dataclasses.fields(kind) if f.default is none and f.default_factory is none]
        missing = [name for name in needed if name not in value]
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
    elif isinstance(value, list | tuple) and origin in (tuple, Sequence):
        kinds = inner if origin is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        if len(kinds) == len(value):
            yield from zip(range(len(value)), kinds, value, strict=True)


def _present(kind: Any, value: Any) -> Any:
    """Of an optional kind, that which is not None."""
    if get_origin(kind) in (Union, UnionType) and value is not None:
        return next(part for part in get_args(kind) if part is not NoneType)
    return kind


def _is_record(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _expected(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) in (tuple, Sequence):
        fixed = get_origin(kind) is tuple and inner[-1] is not Ellipsis
        return f"a list of {len(inner)}" if fixed else "a list"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    return _EXPECTED.get(kind, "keys and values")


def _at(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
