"""Values as they are typed: lists with commas, pairs with an x, assignments."""

from __future__ import annotations

import re
from typing import Any

import typer

from fffconvert.errors import FFFError


def words(text: str) -> tuple[str, ...]:
    """Words between commas, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    Raises:
        BadParameter: Something else stands there.
    """
    if not re.fullmatch(r" *[0-9]{1,9}( *, *[0-9]{1,9})* *", text):
        raise typer.BadParameter(f"{text!r}; expected whole numbers with commas between, as in 1,8,32")
    return tuple(map(int, words(text)))


def pair(text: str) -> tuple[int, int]:
    """Two numbers with an x between.

    Raises:
        BadParameter: Something else stands there.
    """
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text!r}; expected two numbers with an x between, as in 8x8")
    return int(found[1]), int(found[2])


def pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Such pairs between commas."""
    return tuple(pair(word) for word in words(text))


def assignments(flag: str, given: list[str]) -> dict[str, str]:
    """Names and their values.

    Raises:
        FFFError: One is not of the form NAME=VALUE.
    """
    for text in given:
        if not re.fullmatch(r"[^=]+=.+", text, re.DOTALL):
            raise FFFError(f"{flag} is {text!r}; expected a name, = and a value, as in NAME=VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in given)}


def written(value: Any) -> str:
    """A default as it would be typed."""
    return ",".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
