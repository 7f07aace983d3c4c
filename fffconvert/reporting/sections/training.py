"""The training curve of each folder that was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fffconvert.hub.metrics import Step
from fffconvert.reporting.documents import Conversion
from fffconvert.reporting.drawing import BLUE, MARKERS, ORANGE, SERIES, canvas, svg
from fffconvert.reporting.page import Figure, Part, Section, Table, number, whole

PLOTTED_STEPS = 400
"""Points of a curve: longer ones are averaged over equal stretches."""


def section(conversions: Sequence[Conversion]) -> Section:
    """Losses against tokens, and what they add up to."""
    trained = [conversion for conversion in conversions if conversion.training]
    parts: list[Part] = []
    for index, conversion in enumerate(trained):
        caption = f"{conversion.label}: loss over training; dots, on held-out text."
        parts.append(Figure(_loss(conversion.training, f"training{index}", caption), caption))
        if any(len(step.losses) > 1 for step in conversion.training):
            caption = f"{conversion.label}: the parts of the loss, by objective."
            parts.append(Figure(_parts(conversion.training, f"objectives{index}", caption), caption))
    if trained:
        parts.append(_table(trained))
    return Section(
        "training", "Training", tuple(parts), "fffconvert distill DIR --recipe RECIPE.yaml -o DIR2"
    )


def _table(trained: Sequence[Conversion]) -> Table:
    rows = []
    for conversion in trained:
        steps = conversion.training
        done = conversion.metrics and conversion.metrics.training
        held_out = [step.eval_loss for step in steps if step.eval_loss is not None]
        losses = [step.loss for step in steps if step.loss is not None]
        rows.append(
            (
                conversion.label,
                whole(steps[-1].step),
                whole(steps[-1].tokens),
                number(losses[0] if losses else None),
                number(losses[-1] if losses else None),
                number(held_out[0] if held_out else None),
                number(held_out[-1] if held_out else None),
                number(done.seconds if done else None, 0),
                number(done.tokens_per_second if done else None, 0),
            )
        )
    head = (
        "folder",
        "steps",
        "tokens",
        "first loss",
        "last",
        "first held-out loss",
        "last",
        "seconds",
        "tokens/s",
    )
    return Table(head, tuple(rows))


def _x(step: Step) -> int:
    return step.step if step.tokens is None else step.tokens


def _loss(steps: Sequence[Step], name: str, label: str) -> str:
    with canvas() as figure:
        by_tokens = all(step.tokens is not None for step in steps)
        axes = figure.add_subplot(xlabel="tokens" if by_tokens else "step", ylabel="loss")
        curve = [(_x(step), step.loss) for step in steps if step.loss is not None]
        axes.plot(*_thin(curve), color=BLUE, label="training")
        held_out = [(_x(step), step.eval_loss) for step in steps if step.eval_loss is not None]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o", color=ORANGE, label="held-out text")
        axes.xaxis.set_major_formatter(_engineering)
        axes.legend()
        return svg(figure, name, label)


def _parts(steps: Sequence[Step], name: str, label: str) -> str:
    with canvas() as figure:
        axes = figure.add_subplot(xlabel="tokens", ylabel="loss")
        objectives = list(dict.fromkeys(key for step in steps for key in step.losses))
        for index, objective in enumerate(objectives):
            curve = [(_x(step), step.losses[objective]) for step in steps if objective in step.losses]
            x, y = _thin(curve)
            axes.plot(
                x,
                y,
                color=SERIES[index % len(SERIES)],
                marker=MARKERS[index % len(MARKERS)],
                markevery=max(1, len(x) // 8),
                label=objective,
            )
        positive = [value for step in steps for value in step.losses.values() if value > 0]
        if positive and max(positive) > 30 * min(positive):
            axes.set_yscale("log")
        axes.xaxis.set_major_formatter(_engineering)
        axes.legend()
        return svg(figure, name, label)


def _thin(curve: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Means over equal stretches of a long curve; points that are no number are left out."""
    finite = [point for point in curve if math.isfinite(point[1])]
    size = -(-len(finite) // PLOTTED_STEPS) or 1
    stretches = [finite[start : start + size] for start in range(0, len(finite), size)]
    x = [sum(point[0] for point in stretch) / len(stretch) for stretch in stretches]
    return x, [sum(point[1] for point in stretch) / len(stretch) for stretch in stretches]


def _engineering(value: float, _: int) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
