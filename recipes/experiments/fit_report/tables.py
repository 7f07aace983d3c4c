"""Tables of the fit report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

WAYS = {
    "paths": "1x10, closed form",
    "paths_refined": "1x10, refined",
    "dense_small": "dense block of width 11, Adam",
    "leaves": "leaves, closed form",
    "leaves_refined": "leaves, refined",
    "leaves_random_routing": "leaves, random routing",
    "dense_large": "dense block of width 112, Adam",
    "neurons": "112 original neurons, refitted",
    "experts": "clustered experts of 16, refitted",
    "leaves_depth_5": "leaves of 106, depth 5",
    "leaves_depth_6": "leaves of 105, depth 6",
}
GOALS = (
    ("paths", "dense_small", 0.15),
    ("paths_refined", "dense_small", 0.25),
    ("leaves", "dense_large", 0.30),
    ("leaves_refined", "dense_large", 0.40),
    ("leaves", "neurons", 0.40),
    ("leaves", "experts", 0.0),
    ("leaves_depth_5", "dense_large", 0.30),
    ("leaves_depth_6", "dense_large", 0.30),
)


def report(found: Mapping[str, Any]) -> Iterator[Table]:
    """Tables of the sections that were measured."""
    for name, section in found.items():
        if name == "blocks":
            yield _errors(section)
            yield _goals(section["mean"])
        else:
            yield _models(name, section)


def _errors(section: Mapping[str, Any]) -> Table:
    blocks = section["blocks"].values()
    table = Table(title="error of the blocks' outputs on held-out text: 1 - R², 1 - R² per token")
    table.add_column("way")
    for heading in (*(str(n) for n in range(len(blocks))), "mean", "width", "storage", "s"):
        table.add_column(heading, justify="right")
    for way, title in WAYS.items():
        if way not in section["mean"]:
            continue
        mean = section["mean"][way]
        cells = [f"{row[way]['error']:.3f}\n{row[way]['token_error']:.3f}" for row in blocks]
        cells.append(f"{mean['error']:.3f}\n{mean['token_error']:.3f}")
        table.add_row(
            title, *cells, f"{mean['active_width']:.0f}", f"{mean['storage']:.2f}x", f"{mean['seconds']:.0f}"
        )
    return table


def _goals(mean: Mapping[str, Any]) -> Table:
    table = Table(title="how much lower the mean error is")
    for heading in ("conversion", "control"):
        table.add_column(heading)
    for heading in ("1 - R²", "1 - R² per token", "goal"):
        table.add_column(heading, justify="right")
    for way, control, goal in GOALS:
        if way in mean:
            lower = [1 - mean[way][key] / mean[control][key] for key in ("error", "token_error")]
            table.add_row(
                WAYS[way], WAYS[control], *(f"{value:.1%}" for value in lower), f"{goal:.0%}" if goal else ""
            )
    return table


def _models(name: str, section: Mapping[str, Any]) -> Table:
    table = Table(title=name)
    table.add_column("model")
    for heading in (section["metric"], "95 %", "retained", "active", "stored"):
        table.add_column(heading, justify="right")
    for model, row in section["models"].items():
        cells = [f"{row['value']:.4f}"]
        if "active" in row:
            low, high = row["ci95"]
            cells += [f"{low:.4f} to {high:.4f}", f"{row['retained']:.1%}", f"{row['active']:.1%}"]
            cells.append(f"{row['stored']:.2f}x")
        table.add_row(model, *cells)
    return table
