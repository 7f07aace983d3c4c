"""What was converted: a drawing of the layers, and the blocks one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fffconvert.cells import Column
from fffconvert.hub.metrics import BlockResult, Metrics, Totals
from fffconvert.reporting.documents import Conversion
from fffconvert.reporting.drawing import BLUE, FAINT, GREEN, INK, ORANGE, canvas, svg
from fffconvert.reporting.page import Figure, Part, Section, Table, Text, each, short_names

DRAWN_LEVELS = 4
"""Levels of a tree that are drawn; deeper trees are broken off."""
DRAWN_SHAPES = 2
FOLDED_ROWS = 24
"""Longer tables are shown on request."""


def section(conversions: Sequence[Conversion]) -> Section:
    """Describe each folder's layers."""
    parts = each(
        conversions,
        lambda one: one.metrics if one.metrics and (one.metrics.blocks or one.metrics.control) else None,
        _describe,
    )
    return Section("converted", "What was converted", parts, "fffconvert convert MODEL --depth 11 -o DIR")


def _describe(conversion: Conversion, metrics: Metrics, number_: int) -> list[Part]:
    blocks, name = metrics.blocks, f"shape{number_}"
    parts: list[Part] = [Text(" ".join(_sentences(conversion.base, metrics)))]
    width = _width(conversion)
    for index, (shape, count) in enumerate(Counter(map(_key, blocks)).most_common(DRAWN_SHAPES)):
        example = next(block for block in blocks if _key(block) == shape)
        caption = (
            f"{example.shape}, {count} of {len(blocks)} blocks: of {_nodes(example):,} nodes "
            f"a token visits {example.trees * (example.depth + 1)}, one path a tree (drawn bold)"
        )
        if example.leaf_width:
            caption += f", and the {example.leaf_width} neurons of one leaf at its end"
            if example.leaf_sparsity:
                caption += f", {example.leaf_sparsity:.0%} of which it skips once their activation is known"
        caption += f". {example.active_fraction:.1%} of the dense block's multiply-adds."
        parts.append(Figure(_shape(example, width, f"{name}-{index}", caption), caption))
    if any(block.token_r2_heldout is not None for block in blocks) and len(blocks) > 1:
        caption = (
            "Share of the variance of each block's output that its layer explains on held-out text. The "
            "plain R² is dominated by a few tokens; in R² per token all count alike."
        )
        parts.append(Figure(_r2(blocks, f"{name}-r2", caption), caption))
    return [*parts, _table(blocks)] if blocks else parts


def _sentences(base: str, metrics: Metrics) -> list[str]:
    lines = [f"The feedforward blocks of {base} were replaced by fast feedforward layers."]
    if metrics.control:
        lines = [f"This folder is a control, not a conversion: {metrics.control}."]
    if metrics.blocks:
        lines += Totals.of(metrics.blocks).lines()
    if metrics.training:
        lines.append(
            f"Afterwards it was trained for {metrics.training.steps:,} steps on "
            f"{metrics.training.tokens:,} tokens; the figures of the blocks are from before."
        )
    elif not metrics.control:
        lines.append("Nothing has been trained: the layers are fitted block by block, in closed form.")
    return lines


def _table(blocks: Sequence[BlockResult]) -> Table:
    columns: dict[str, Column] = {
        "block": "name",
        "shape": "shape",
        "active width": "active_width:,",
        "multiply-adds left": "active_fraction:.1%",
        "R²": "r2_heldout:.3f",
        "R² per token": "token_r2_heldout:.3f",
        "routing entropy": "routing_entropy:.2f",
        "dead nodes": "dead_node_share:.1%",
        "parameters before": "parameters_before:,",
        "now": "parameters:,",
    }
    caption = "The blocks one by one, measured on held-out calibration text."
    return Table.of(blocks, columns, left=2, caption=caption, folded=len(blocks) > FOLDED_ROWS)


def _key(block: BlockResult) -> tuple[float, ...]:
    return block.trees, block.depth, block.trunk, block.leaf_width, block.leaf_sparsity


def _nodes(block: BlockResult) -> int:
    return int(block.trees * (2 ** (block.depth + 1) - 1))


def _width(conversion: Conversion) -> int | None:
    """d_model of the first layer, from the config beside the weights."""
    path = conversion.folder / "config.json"
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))["quantization_config"]["modules"]
        return int(next(iter(modules.values()))["spec"]["d_in"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return None  # the drawing does without


def _shape(block: BlockResult, d_model: int | None, name: str, label: str) -> str:
    """Draw the layer: a tree with one path from its root, what stands beside it, and the sum."""
    levels = min(block.depth, DRAWN_LEVELS)
    with canvas(height=2.9 if block.leaf_width else 2.4) as figure:
        axes = figure.add_subplot(xlim=(-0.14, 1.12), ylim=(-0.3 if block.leaf_width else -0.05, 1.14))
        axes.axis("off")
        path = [0]
        for level in range(levels):
            path.append(2 * path[-1] + (1 + level) % 2)
        bottom = 0.2
        places = {
            (level, index): ((index + 0.5) / 2**level, 1 - (1 - bottom) * level / max(levels, 1))
            for level in range(levels + 1)
            for index in range(2**level)
        }
        for (level, index), (x, y) in places.items():
            on_path = path[level] == index
            if level:
                above = places[level - 1, index // 2]
                axes.plot(
                    (x, above[0]),
                    (y, above[1]),
                    color=BLUE if on_path else FAINT,
                    linewidth=2.5 if on_path else 0.8,
                    zorder=1,
                )
            axes.plot(
                x,
                y,
                "o",
                markersize=9 if on_path else 5,
                color=BLUE if on_path else FAINT,
                zorder=2,
            )
        _ends(axes, block, levels, places, path)
        tokens = "token" if d_model is None else f"token, {d_model:,} wide"
        axes.annotate(
            tokens, (0.5, 1.02), (0.5, 1.11), ha="center", va="center", arrowprops=_arrow(), color=INK
        )
        beside = f"× {block.trees} trees, summed" if block.trees > 1 else ""
        axes.text(0.98, 0.92, beside, ha="right", color=INK)
        if block.trunk:
            axes.text(
                0.0,
                0.92,
                f"+ trunk of rank {block.trunk},\nalways active",
                color=GREEN,
                ha="left",
                va="center",
            )
        return svg(figure, name, label)


def _ends(axes: Any, block: BlockResult, levels: int, places: Any, path: list[int]) -> None:
    """What hangs below the levels that are drawn."""
    foot = 0.2
    if block.depth > levels:
        for index in range(2**levels):
            x, y = places[levels, index]
            colour = BLUE if index == path[levels] else FAINT
            axes.plot((x, x), (y - 0.04, y - 0.12), ":", color=colour, linewidth=2 if colour == BLUE else 1)
        axes.text(
            0.5,
            -0.02,
            f"… down to level {block.depth} with its {2**block.depth:,} nodes",
            ha="center",
            color=INK,
        )
        foot = -0.04
    if block.leaf_width:
        x = places[levels, path[levels]][0]
        for index in range(2**levels):
            centre = places[levels, index][0]
            half = 0.36 / 2**levels
            colour = ORANGE if centre == x else FAINT
            axes.fill_between(
                (centre - half, centre + half), foot - 0.18, foot - 0.08, color=colour, alpha=0.9, linewidth=0
            )
        axes.text(
            0.5,
            foot - 0.26,
            f"a dense block of {block.leaf_width} neurons in each leaf",
            ha="center",
            color=INK,
        )


def _arrow() -> dict[str, Any]:
    return {"arrowstyle": "->", "color": INK}


def _r2(blocks: Sequence[BlockResult], name: str, label: str) -> str:
    with canvas() as figure:
        axes = figure.add_subplot(xlabel="block", ylabel="R² on held-out text")
        x = range(len(blocks))
        for key, colour, marker, text in (
            ("r2_heldout", ORANGE, "s", "R²"),
            ("token_r2_heldout", BLUE, "o", "R² per token"),
        ):
            axes.plot(
                x, [_or_nan(getattr(block, key)) for block in blocks], color=colour, marker=marker, label=text
            )
        labels = short_names([block.name for block in blocks])
        every = -(-len(blocks) // 12)
        axes.set_xticks(list(x)[::every], labels[::every], rotation=0 if max(map(len, labels)) < 4 else 30)
        low, _ = axes.get_ylim()
        axes.set_ylim(min(0.0, low), 1.02)
        axes.legend()
        return svg(figure, name, label)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
