"""What a report consists of, whether it is read as HTML or as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fffconvert.cells import Column, cell

NOTHING = "–"
"""Stands for a figure that is missing."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Finding:
    """A sentence that a reader must not miss.

    Attributes:
        tone: "good", "bad" or "open" (the figures do not tell).
        text: The sentence.
    """

    tone: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        head: Names of the columns.
        rows: Formatted cells.
        left: How many columns hold words, and stand on the left; the rest hold numbers.
        caption: What it shows.
        folded: Shown on request in HTML.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    caption: str = ""
    folded: bool = False

    @classmethod
    def of(cls, rows: Iterable[Any], columns: Mapping[str, Column], **options: Any) -> Table:
        """A table of records, by heading; see `fffconvert.cells`. Options are those of the table."""
        cells = (tuple(cell(row, column, NOTHING) for column in columns.values()) for row in rows)
        return cls(tuple(columns), tuple(cells), **options)


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        svg: An `<svg>` element, its ids unique to it.
        caption: What it shows, and what to look for.
    """

    svg: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file."""

    text: str


Part = Text | Heading | Finding | Table | Figure | Code


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: Its identifier, also in the JSON document.
        title: Its heading.
        parts: What it shows; empty if its data is missing.
        command: The command that makes the missing data.
    """

    name: str
    title: str
    parts: tuple[Part, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: Its title.
        subtitle: What it is about, in a line.
        tiles: The most important figures: value, and what it is.
        overview: Several models side by side.
        findings: The most important sentences.
        sections: In the order of reading.
        footer: Who wrote it.
    """

    title: str
    subtitle: str
    tiles: tuple[tuple[str, str], ...]
    overview: Table | None
    findings: tuple[Finding, ...]
    sections: tuple[Section, ...]
    footer: str = ""

    @property
    def present(self) -> tuple[Section, ...]:
        """The sections with something to show."""
        return tuple(section for section in self.sections if section.parts)

    @property
    def missing(self) -> tuple[Section, ...]:
        """The sections whose data nobody has made yet."""
        return tuple(section for section in self.sections if not section.parts)


def each(
    conversions: Sequence[Any],
    known: Callable[[Any], Any],
    describe: Callable[[Any, Any, int], Iterable[Part]],
) -> tuple[Part, ...]:
    """What there is to show of each folder, headed by its name where there are several.

    Args:
        conversions: The folders.
        known: Of a folder what is to be described, or nothing.
        describe: Of the folder, of what is known of it, and of its number.
    """
    parts: list[Part] = []
    for index, conversion in enumerate(conversions):
        if found := known(conversion):
            parts += [Heading(conversion.label)] if len(conversions) > 1 else []
            parts += describe(conversion, found, index)
    return tuple(parts)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash for one that is missing."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for one that is missing."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}%}"


def whole(value: int | None) -> str:
    """A count; a dash for one that is missing."""
    return NOTHING if value is None else f"{value:,}"


def interval(bounds: tuple[float, float] | None) -> str:
    """A confidence interval; a dash for one that is missing."""
    return NOTHING if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def short_names(names: Sequence[str]) -> list[str]:
    """Names of blocks without what all of them begin and end with: "layer.0", "layer.1" to "0", "1"."""
    pieces = [name.split(".") for name in names]
    if len(set(names)) < 2:
        return list(names)
    start = 0
    while len({tuple(piece[: start + 1]) for piece in pieces}) == 1:
        start += 1
    end = 0
    while len({tuple(piece[len(piece) - end - 1 :]) for piece in pieces}) == 1:
        end += 1
    short = [".".join(piece[start : len(piece) - end]) for piece in pieces]
    return short if all(short) and len(set(short)) == len(set(names)) else list(names)
