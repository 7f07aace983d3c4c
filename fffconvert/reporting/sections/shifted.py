"""Robustness: the model on shifted inputs. Ablation: the model with its routing changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fffconvert.cells import Column
from fffconvert.evaluation.ablation import Ablation, AblationRow
from fffconvert.evaluation.robustness import Robustness, RobustnessRow
from fffconvert.reporting.documents import Conversion
from fffconvert.reporting.drawing import BLUE, FAINT, INK, MARKERS, SERIES, canvas, svg
from fffconvert.reporting.page import Figure, Part, Section, Table, Text, each, interval, number

WHAT = {
    "hard": "one path a tree, as deployed",
    "all-nodes": "every node and leaf active for every token",
    "random": "each token goes to a leaf drawn at random",
    "shuffled": "each token goes where another one goes",
}


def robustness(conversions: Sequence[Conversion]) -> Section:
    """Quality, routing overlap and use of neurons on other domains, languages, typos, case and length."""
    parts = each(conversions, lambda one: _rows(one.evaluation and one.evaluation.robustness), _robustness)
    return Section("robustness", "Robustness", parts, "fffconvert evaluate DIR --task robustness")


def ablation(conversions: Sequence[Conversion]) -> Section:
    """Whether it is the routing that works: what the model is worth with other routing."""
    parts = each(conversions, lambda one: _rows(one.evaluation and one.evaluation.ablation), _ablation)
    if parts:
        parts += (
            Text(
                "If random or shuffled routing costs little, it is not the routing that works. If fewer "
                "levels cost little, the trees are deeper than they need to be."
            ),
        )
    return Section("ablation", "Ablation of the routing", parts, "fffconvert evaluate DIR --task ablation")


def _rows(found: Any) -> Any:
    """What was measured, if it has rows."""
    return found if found and found.rows else None


def _robustness(_: Conversion, found: Robustness, index: int) -> Iterator[Part]:
    known = [row for row in found.rows if row.retained is not None]
    if known:
        caption = (
            "What the converted model retains of its teacher on shifted inputs. Marks tell the kind of "
            "shift; the vertical line is the teacher itself."
        )
        yield Figure(_draw_retained(known, f"robustness{index}", caption), caption)
    if any(row.routing_overlap is not None for row in found.rows):
        caption = (
            "How far the shifted inputs take the paths of the model's own domain (1: the same use of the "
            "leaves), and what share of the neurons they use at all."
        )
        yield Figure(_draw_overlap(found.rows, f"overlap{index}", caption), caption)
    columns: dict[str, Column] = {
        "input": "name",
        "kind": "kind",
        "metric": "metric",
        "converted": lambda row: number(row.value),
        "95 % interval": lambda row: interval(row.ci95),
        "teacher": lambda row: number(row.teacher),
        "retained": "retained:.1%",
        "routing overlap": "routing_overlap:.2f",
        "neurons used": "neurons_used:.1%",
        "n": "n:,",
    }
    yield Table.of(found.rows, columns, left=3)


def _ablation(_: Conversion, found: Ablation, index: int) -> Iterator[Part]:
    for number_, metric in enumerate(dict.fromkeys(row.metric for row in found.rows)):
        rows = [row for row in found.rows if row.metric == metric]
        caption = (
            f"{found.task or 'The model'}, {metric}, with the routing changed and all weights as they "
            "are; the dashed line is the model as deployed."
        )
        yield Figure(_draw_ablation(rows, f"ablation{index}-{number_}", caption), caption)
    columns: dict[str, Column] = {
        "routing": "name",
        "what it is": lambda row: _what(row.name),
        "metric": "metric",
        "value": lambda row: number(row.value),
        "95 % interval": lambda row: interval(row.ci95),
        "cost": lambda row: number(row.cost),
        "n": "n:,",
    }
    yield Table.of(found.rows, columns, left=3)


def _what(name: str) -> str:
    if name.startswith("depth-"):
        return f"from level {name.removeprefix('depth-')} on, each token follows most others"
    return WHAT.get(name, "")


def _draw_retained(rows: Sequence[RobustnessRow], name: str, label: str) -> str:
    kinds = list(dict.fromkeys(row.kind for row in rows))
    with canvas(height=1.0 + 0.24 * len(rows)) as figure:
        axes = figure.add_subplot(xlabel="retained, converted / teacher (of a loss: teacher / converted)")
        axes.axvline(1, color=INK, linewidth=1)
        for kind in kinds:
            points = [(row.retained, y) for y, row in enumerate(rows) if row.kind == kind]
            index = kinds.index(kind)
            axes.plot(
                *zip(*points, strict=True),
                MARKERS[index % len(MARKERS)],
                color=SERIES[index % len(SERIES)],
                label=kind,
            )
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        figure.legend(loc="outside upper left", ncols=3)
        return svg(figure, name, label)


def _draw_overlap(rows: Sequence[RobustnessRow], name: str, label: str) -> str:
    with canvas(height=1.0 + 0.24 * len(rows)) as figure:
        axes = figure.add_subplot(xlabel="share")
        for key, marker, colour, text in (
            ("routing_overlap", "o", BLUE, "routing overlap"),
            ("neurons_used", "s", SERIES[1], "neurons used"),
        ):
            points = [(getattr(row, key), y) for y, row in enumerate(rows) if getattr(row, key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=colour, label=text)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        figure.legend(loc="outside upper left", ncols=3)
        return svg(figure, name, label)


def _draw_ablation(rows: Sequence[AblationRow], name: str, label: str) -> str:
    with canvas(height=1.0 + 0.26 * len(rows)) as figure:
        axes = figure.add_subplot(xlabel=rows[0].metric)
        for y, row in enumerate(rows):
            if row.value is None:
                continue
            if row.ci95 is not None:
                axes.plot(row.ci95, (y, y), color=INK, linewidth=1)
            hard = row.name == "hard"
            axes.barh(y, row.value, height=0.62, color=BLUE if hard else FAINT)
            if hard:
                axes.axvline(row.value, color=BLUE, linewidth=1, linestyle="--")
            # Beside the bar's end, on its far side from zero.
            axes.annotate(
                f"{row.value:.3g}",
                (_end(row), y),
                (3 if row.value >= 0 else -3, 0),
                textcoords="offset points",
                va="center",
                ha="left" if row.value >= 0 else "right",
                fontsize=8,
            )
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.15)
        return svg(figure, name, label)


def _end(row: AblationRow) -> float:
    """Where the bar with its interval ends."""
    value = row.value or 0.0
    if row.ci95 is None:
        return value
    return max(row.ci95) if value >= 0 else min(row.ci95)
