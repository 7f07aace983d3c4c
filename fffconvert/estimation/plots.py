"""Figures of a sweep. matplotlib is an extra: pip install 'fffconvert[plots]'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fffconvert.errors import FFFError
from fffconvert.figures import figure_class
from fffconvert.options.estimate import Sweep

AXES = {
    Sweep.DEPTH: ("depth", "depth of the trees"),
    Sweep.CONTEXT: ("context", "context, in tokens"),
    Sweep.BATCH: ("batch", "sequences"),
    Sweep.MODEL: ("parameters", "parameters"),
}


def plot(rows: Sequence[dict[str, Any]], over: Sweep, path: Path) -> None:
    """Draw the speed-up of the whole model over what was swept; dashed, the limit if blocks cost nothing.

    Args:
        rows: Of `sweep`.
        over: What changes from row to row.
        path: A .png, .svg or .pdf file to write.

    Raises:
        FFFError: matplotlib is not installed, or the file cannot be written.
    """
    key, label = AXES[over]
    figure = figure_class()(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    timed = "roofline_speedup" in rows[0]
    for model in dict.fromkeys(row["model"] for row in rows) if over is not Sweep.MODEL else (None,):
        mine = sorted((row for row in rows if model in (None, row["model"])), key=lambda row: row[key])
        x = [row[key] for row in mine]
        # Models are points; along a range, lines.
        solid, dashed, dotted = ("-", "--", ":") if model else ("", "", "")
        speedup, limit = ([row[name] for row in mine] for name in ("model_speedup", "model_speedup_limit"))
        (line,) = axes.plot(x, speedup, solid, marker="o", markersize=4, label=model)
        axes.plot(x, limit, dashed, marker="" if model else "_", color=line.get_color(), alpha=0.6)
        if timed:
            y = [row["roofline_speedup"] for row in mine]
            axes.plot(x, y, dotted, color=line.get_color(), marker="^", markersize=4)
        for row in mine if model is None else ():
            axes.annotate(row["model"], (row[key], row["model_speedup"]), fontsize=7, rotation=30)
    if over is not Sweep.DEPTH:
        axes.set_xscale("log", base=10 if over is Sweep.MODEL else 2)
    first = rows[0]
    axes.set(
        xlabel=label,
        ylabel="speed-up of the whole model",
        title=f"{first['phase']}, {_fixed(first, over)}: multiply-adds (dashes: blocks cost nothing"
        + (f"; triangles: {first['hardware']})" if timed else ")"),
        ylim=(0, None),
    )
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    if over is not Sweep.MODEL:
        axes.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise FFFError(f"cannot write {path}: {error}; choose a .png, .svg or .pdf file") from None


def _fixed(row: dict[str, Any], over: Sweep) -> str:
    """What does not change."""
    context, batch = f"context {row['context']:,}", f"batch {row['batch']:,}"
    return batch if over is Sweep.CONTEXT else context if over is Sweep.BATCH else f"{context}, {batch}"
