"""Where the tokens go: use of the levels, of the leaves, and the words that arrive there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fffconvert.reporting.documents import Conversion, LayerRouting, LeafWords
from fffconvert.reporting.drawing import FAINT, INK, MARKERS, SERIES, canvas, svg
from fffconvert.reporting.page import (
    Figure,
    Heading,
    Part,
    Section,
    Table,
    number,
    percent,
    short_names,
    whole,
)

DRAWN_LAYERS = 6
"""Curves in a figure; of more layers some are drawn, evenly from first to last."""
SHOWN_LEAVES, SHOWN_WORDS = 3, 8


def section(conversions: Sequence[Conversion]) -> Section:
    """Pictures and tables of the routing."""
    parts: list[Part] = []
    for index, conversion in enumerate(conversions):
        found = conversion.evaluation and conversion.evaluation.routing
        if not found or not found.layers:
            continue
        if len(conversions) > 1:
            parts.append(Heading(conversion.label))
        drawn = _some([layer for layer in found.layers if layer.tree == 0])
        if any(layer.levels for layer in drawn):
            caption = (
                "Entropy of the use of each level's nodes over its greatest value: 1 if tokens spread "
                "evenly, 0 if all take the same way."
            )
            parts.append(Figure(_levels(drawn, "entropy", f"entropy{index}", caption), caption))
            caption = "Share of each level's nodes that any token visits: the rest is dead weight."
            parts.append(Figure(_levels(drawn, "visited", f"visited{index}", caption), caption))
        if any(layer.leaf_share for layer in drawn):
            caption = (
                "Share of the tokens that the busiest leaves take together. On the diagonal all leaves are "
                "used alike; the steeper the curve, the fewer do the work."
            )
            parts.append(Figure(_leaves(drawn, f"leaves{index}", caption), caption))
        parts.append(_table(found.layers))
        if found.leaves:
            parts.append(_words(_first_leaves(found.leaves)))
        if found.agreement:
            parts.append(_agreement(found.agreement))
    return Section("routing", "Routing", tuple(parts), "fffconvert evaluate DIR --task routing")


def _some(layers: Sequence[LayerRouting]) -> list[LayerRouting]:
    if len(layers) <= DRAWN_LAYERS:
        return list(layers)
    step = (len(layers) - 1) / (DRAWN_LAYERS - 1)
    return [layers[round(index * step)] for index in range(DRAWN_LAYERS)]


def _table(layers: Sequence[LayerRouting]) -> Table:
    return Table(
        ("layer", "tree", "entropy", "dead nodes", "leaves", "busiest leaf"),
        tuple(
            (
                layer.name,
                str(layer.tree),
                number(layer.entropy),
                percent(layer.dead_share),
                whole(len(layer.leaf_share)) if layer.leaf_share else "–",
                percent(max(layer.leaf_share, default=None)),
            )
            for layer in layers
        ),
        folded=len(layers) > 24,
    )


def _first_leaves(leaves: Sequence[LeafWords]) -> list[LeafWords]:
    """Some leaves of each layer: documents name the busiest first."""
    shown: Counter[str] = Counter()
    chosen = []
    for leaf in leaves:
        shown[leaf.layer] += 1
        if shown[leaf.layer] <= SHOWN_LEAVES:
            chosen.append(leaf)
    return chosen


def _words(leaves: Sequence[LeafWords]) -> Table:
    return Table(
        ("layer", "leaf", "tokens there", "words, and how often"),
        tuple(
            (
                leaf.layer,
                str(leaf.leaf),
                percent(leaf.share),
                ", ".join(f"{word} {count}" for word, count in leaf.tokens[:SHOWN_WORDS]),
            )
            for leaf in leaves
        ),
        left=4,
        caption="Which words go where: those that stand out in the busiest leaves of each first tree.",
        folded=len(leaves) > 24,
    )


def _agreement(values: Mapping[str, Any]) -> Table:
    """Whether other models send the same tokens the same way."""
    rows = tuple(
        (name, percent(found.get("same_leaf")), percent(found.get("same_decisions")))
        for name, found in values.items()
        if isinstance(found, Mapping)
    )
    return Table(("paths, against", "same leaf", "same decisions from the root on"), rows)


def _levels(layers: Sequence[LayerRouting], what: str, name: str, label: str) -> str:
    entropy = what == "entropy"
    with canvas() as figure:
        axes = figure.add_subplot(
            xlabel="level", ylabel="entropy, normalised" if entropy else "nodes visited, share"
        )
        for index, (layer, called) in enumerate(zip(layers, _names(layers), strict=True)):
            points = [
                (level.level, level.entropy if entropy else level.visited / level.nodes)
                for level in layer.levels
                if level.nodes and (not entropy or (level.entropy is not None and level.level > 0))
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=SERIES[index % len(SERIES)],
                    marker=MARKERS[index % len(MARKERS)],
                    label=called,
                )
        axes.set_ylim(-0.02, 1.05)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside upper left", ncols=6, title="layer", columnspacing=1)
        return svg(figure, name, label)


def _leaves(layers: Sequence[LayerRouting], name: str, label: str) -> str:
    with canvas() as figure:
        axes = figure.add_subplot(xlabel="leaves, busiest first, share", ylabel="tokens, share")
        axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1)
        axes.annotate("all alike", (0.62, 0.6), color=INK, fontsize=8, rotation=30, va="top")
        for index, (layer, called) in enumerate(zip(layers, _names(layers), strict=True)):
            if not sum(layer.leaf_share):
                continue
            x, y = cumulative(layer.leaf_share)
            axes.plot(
                x,
                y,
                color=SERIES[index % len(SERIES)],
                marker=MARKERS[index % len(MARKERS)],
                markevery=max(1, len(x) // 6),
                label=called,
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        figure.legend(loc="outside upper left", ncols=6, title="layer", columnspacing=1)
        return svg(figure, name, label)


def cumulative(shares: Sequence[float], points: int = 120) -> tuple[list[float], list[float]]:
    """Share of the tokens in the busiest leaves.

    Args:
        shares: Tokens of each leaf, in any unit; not all 0.
        points: About so many points of many leaves.

    Returns:
        Shares of the leaves, busiest first, from 0 to 1; and of the tokens there.
    """
    total, sums = sum(shares), [0.0]
    for share in sorted(shares, reverse=True):
        sums.append(sums[-1] + share / total)
    every = -(-len(shares) // points)
    chosen = sorted({*range(0, len(sums), every), len(sums) - 1})
    return [index / len(shares) for index in chosen], [sums[index] for index in chosen]


def _names(layers: Sequence[LayerRouting]) -> list[str]:
    return short_names([layer.name for layer in layers])
