"""A page as HTML that needs nothing beside it, and as Markdown."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from fffconvert.reporting.page import Page

GENERATOR = "fffconvert report"
"""Stands at the head of both files, and tells that a later run may replace them."""


def to_html(page: Page) -> str:
    """The page with styles and pictures inside."""
    return _render("page.html.j2", page)


def to_markdown(page: Page) -> str:
    """The same text and tables, with the captions of the pictures."""
    return _render("page.md.j2", page)


def _render(template: str, page: Page) -> str:
    text: str = _environment().get_template(template).render(page=page, generator=GENERATOR)
    return text.rstrip("\n") + "\n"


@cache
def _environment() -> Any:
    """jinja2 with the templates of this package; HTML is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fffconvert.reporting"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.filters["cell"] = _cell
    return environment


def _cell(text: str) -> str:
    """Text for a cell of Markdown, whatever a model's vocabulary holds."""
    return re.sub(r"([\\|<*`\[])", r"\\\1", " ".join(text.split()))
