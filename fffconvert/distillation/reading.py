"""Recipes from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fffconvert.distillation.recipe import Recipe
from fffconvert.errors import FFFError, first_line
from fffconvert.records import plain, read


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
        return read(Recipe, values)
    except FFFError as error:
        raise FFFError(f"recipe {path}: {error}") from None


def changed_recipe(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with other values, by dotted names as in `read_recipe`.

    Raises:
        FFFError: A key or value is wrong; the message names it.
    """
    values = plain(recipe)
    for name, value in settings.items():
        _set(values, name.split("."), value, name)
    return read(Recipe, values)


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
