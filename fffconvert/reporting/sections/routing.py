"""Where the tokens go: use of the levels, of the leaves, and the words that arrive there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from fffconvert.cells import Column
from fffconvert.evaluation.routing import LayerRouting, LeafWords, Routing
from fffconvert.reporting.documents import Conversion
from fffconvert.reporting.drawing import FAINT, INK, MARKERS, SERIES, canvas, svg
from fffconvert.reporting.page import Figure, Part, Section, Table, each, percent, short_names, whole

DRAWN_LAYERS = 6
"""Curves in a figure; of more layers some are drawn, evenly from first to last."""
SHOWN_LEAVES, SHOWN_WORDS, FOLDED = 3, 8, 24


def section(conversions: Sequence[Conversion]) -> Section:
    """Pictures and tables of the routing."""
    parts = each(conversions, lambda one: one.evaluation and one.evaluation.routing, _describe)
    return Section("routing", "Routing", parts, "fffconvert evaluate DIR --task routing")


def _describe(_: Conversion, found: Routing, index: int) -> Iterator[Part]:
    if not found.layers:
        return
    drawn = _some([layer for layer in found.layers if layer.tree == 0])
    if any(layer.levels for layer in drawn):
        caption = (
            "Entropy of the use of each level's nodes over its greatest value: 1 if tokens spread "
            "evenly, 0 if all take the same way."
        )
        yield Figure(_levels(drawn, "entropy", f"entropy{index}", caption), caption)
        caption = "Share of each level's nodes that any token visits: the rest is dead weight."
        yield Figure(_levels(drawn, "visited", f"visited{index}", caption), caption)
    if any(layer.leaf_share for layer in drawn):
        caption = (
            "Share of the tokens that the busiest leaves take together. On the diagonal all leaves are "
            "used alike; the steeper the curve, the fewer do the work."
        )
        yield Figure(_leaves(drawn, f"leaves{index}", caption), caption)
    columns: dict[str, Column] = {
        "layer": "name",
        "tree": "tree",
        "entropy": "entropy:.3f",
        "dead nodes": "dead_share:.1%",
        "leaves": lambda layer: whole(len(layer.leaf_share) or None),
        "busiest leaf": lambda layer: percent(max(layer.leaf_share, default=None)),
    }
    yield Table.of(found.layers, columns, folded=len(found.layers) > FOLDED)
    if found.leaves:
        yield _words(_first_leaves(found.leaves))
    if found.agreement:
        agreed: dict[str, Column] = {
            "paths, against": lambda row: row[0],
            "same leaf": lambda row: percent(row[1].same_leaf),
            "same decisions from the root on": lambda row: percent(row[1].same_decisions),
        }
        yield Table.of(found.agreement.items(), agreed)


def _some(layers: Sequence[LayerRouting]) -> list[LayerRouting]:
    if len(layers) <= DRAWN_LAYERS:
        return list(layers)
    step = (len(layers) - 1) / (DRAWN_LAYERS - 1)
    return [layers[round(index * step)] for index in range(DRAWN_LAYERS)]


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
    columns: dict[str, Column] = {
        "layer": "layer",
        "leaf": "leaf",
        "tokens there": "share:.1%",
        "words, and how often": lambda leaf: ", ".join(
            f"{word} {count}" for word, count in leaf.tokens[:SHOWN_WORDS]
        ),
    }
    caption = "Which words go where: those that stand out in the busiest leaves of each first tree."
    return Table.of(leaves, columns, left=4, caption=caption, folded=len(leaves) > FOLDED)


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
