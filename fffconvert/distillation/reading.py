"""Recipes from YAML."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fffconvert.distillation.recipe import Recipe
from fffconvert.errors import FFFError, first_line

T = TypeVar("T")
_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def read_recipe(path: str | Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe.

    Args:
        path: The file.
        settings: Values that go before those of the file, by dotted names as in `stages.0.steps`; `stages`
            without a number means all stages.

    Raises:
        FFFError: It cannot be read, or a key or value is wrong; the message names it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FFFError(f"recipe {path} cannot be read: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise FFFError(
            f"recipe {path} holds a {type(values).__name__}; expected keys such as stages and data"
        )
    for name, value in (settings or {}).items():
        _set(values, name.split("."), value, name)
    try:
        return from_dict(Recipe, values)
    except FFFError as error:
        raise FFFError(f"recipe {path}: {error}") from None


def changed_recipe(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with other values, by dotted names as in `read_recipe`.

    Raises:
        FFFError: A key or value is wrong; the message names it.
    """
    values = recipe.to_dict()
    for name, value in settings.items():
        _set(values, name.split("."), value, name)
    return from_dict(Recipe, values)


def _set(values: Any, parts: list[str], value: Any, name: str) -> None:
    head, *rest = parts
    if isinstance(values, list):
        if head.isdigit() and int(head) < len(values):
            chosen = [int(head)]
        elif not head.isdigit():
            chosen, rest = list(range(len(values))), parts
        else:
            raise FFFError(f"{name} names part {head} of {len(values)}; the first is 0")
        for index in chosen:
            _set(values[index], rest, value, name)
    elif rest:
        _set(values.setdefault(head, {}), rest, value, name)
    else:
        values[head] = value


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Build a recipe, or a part of one, from plain values.

    Raises:
        FFFError: A key is unknown (the nearest known one is named), or a value is of the wrong kind.
    """
    if not isinstance(values, Mapping):
        raise FFFError(f"{where.rstrip('.') or 'it'} is {values!r}; expected keys and values")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = get_close_matches(str(key), hints, 1, 0.0)[0]
            raise FFFError(f"unknown key {where}{key}; did you mean {where}{near}?")
    return cls(**{key: _value(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _value(arguments[0], value, where)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_value(arguments[0], item, f"{where}.{i}") for i, item in enumerate(items))
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, f"{where}.")
    if issubclass(hint, Enum):
        known = [member.value for member in hint]
        if value not in known:
            raise FFFError(f"{where} is {value!r}; expected one of {', '.join(known)}")
        return hint(value)
    if hint is float and isinstance(value, str):  # YAML reads 4e-5 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    fits = isinstance(value, (int, float) if hint is float else hint)
    if not fits or (isinstance(value, bool) and hint is not bool):
        raise FFFError(f"{where} is {value!r}; expected {_NAMES[hint]}")
    return hint(value)
