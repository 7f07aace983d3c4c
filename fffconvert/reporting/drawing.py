"""matplotlib figures as inline SVG whose colours follow the page: light, dark or printed."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fffconvert.figures import figure_class

# Okabe and Ito's palette, distinct to colour-blind eyes. The page defines --blue and the others, lighter in
# dark mode; the colour itself stands in for readers without style sheets.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
NAMES = {BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red", PURPLE: "purple", SKY: "sky"}
INK, FAINT, PAPER = "#101112", "#808182", "#fefdfc"
"""Text and axes; grid lines; the page itself. Each occurs in no other meaning, so that it can be replaced."""
SERIES = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH, HEIGHT = 5.0, 3.1
"""Inches: as wide as a phone, so that letters keep their size there."""

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fffconvert",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 5,
}


@contextmanager
def canvas(width: float = WIDTH, height: float = HEIGHT) -> Iterator[Any]:
    """A matplotlib figure in the style of the report; to be drawn and turned to SVG within the block.

    Raises:
        FFFError: matplotlib is not installed.
    """
    make = figure_class("report", "report")
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield make(figsize=(width, height), layout="constrained")


def svg(figure: Any, name: str, label: str) -> str:
    """Turn a figure to an `<svg>` element.

    Args:
        figure: From `canvas`.
        name: Prefix of its ids, unique in the page.
        label: What it shows, for those who cannot see it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    for colour, variable in {**NAMES, INK: "ink", FAINT: "faint", PAPER: "paper"}.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    # The page's CSS sets width and height.
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1, flags=re.DOTALL)
    text = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
