"""Quality beside the teacher and the controls, and whether the conversion beat them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fffconvert.cells import Column
from fffconvert.evaluation.compare import TaskScore
from fffconvert.reporting.documents import Conversion
from fffconvert.reporting.drawing import BLUE, FAINT, INK, ORANGE, PURPLE, RED, canvas, svg
from fffconvert.reporting.page import (
    Figure,
    Finding,
    Part,
    Section,
    Table,
    Text,
    each,
    number,
    percent,
    whole,
)

CONTROLS = {
    "teacher": ("teacher", INK, "|"),
    "dense": ("dense block of the same active width", ORANGE, "s"),
    "ablated": ("blocks ablated", RED, "X"),
    "random_routing": ("random routing", PURPLE, "v"),
}
"""What the converted model is held against: how it is called, and drawn."""
JUDGED = ("dense", "ablated")
COMMAND = "fffconvert evaluate DIR --task sts-b --control dense=DIR2 --control ablated=DIR3"


def section(conversions: Sequence[Conversion]) -> Section:
    """Tables and plots of all tasks."""
    parts = each(conversions, lambda one: one.evaluation and one.evaluation.tasks, _describe)
    if parts:
        parts += (
            Text(
                "retained = converted / teacher (of a loss: teacher / converted); recovered = (converted - "
                "ablated) / (teacher - ablated): 0 is a model without its feedforward blocks, 1 the "
                "original; unclear where deleting the blocks costs nothing that shows. Controls: the same "
                "model with a dense block of the same active width, with its blocks ablated, or with "
                "hyperplanes drawn at random, each trained equally."
            ),
        )
    return Section("quality", "Quality", parts, COMMAND)


def _describe(_: Conversion, tasks: dict[str, TaskScore], index: int) -> list[Part]:
    return [*_figures(tasks, f"quality{index}"), _table(tasks)]


def findings(conversion: Conversion) -> list[Finding]:
    """Say of each control on which tasks it was beaten, on which not, and where the figures do not tell."""
    if conversion.evaluation is None:
        return []
    tasks = conversion.evaluation.tasks
    found: list[Finding] = []
    for control in JUDGED:
        groups: dict[str | None, list[str]] = {}
        for name, task in tasks.items():
            other = getattr(task, control)
            if other is not None and task.value is not None:
                words = f"{name} ({number(task.value)} against {number(other)})"
                groups.setdefault(task.verdicts.get(control), []).append(words)
        found += _judged(control, groups)
    blunt = [name for name, task in tasks.items() if task.recovered_unclear]
    if blunt:
        found.append(
            Finding(
                "open",
                f"Deleting all blocks costs nothing that shows on {', '.join(blunt)}: what a conversion "
                "keeps, these tasks cannot tell.",
            )
        )
    unknown = [name for name in JUDGED if all(getattr(task, name) is None for task in tasks.values())]
    if unknown and tasks:
        called = "” and “".join(CONTROLS[name][0] for name in unknown)
        found.append(
            Finding(
                "open", f"Not held against “{called}”: what the trees are good for, these figures do not say."
            )
        )
    return found


def _judged(control: str, groups: Mapping[str | None, list[str]]) -> list[Finding]:
    called = f"The control “{CONTROLS[control][0]}”"
    end = "the trees bought nothing there" if control == "dense" else "nothing was retained there"
    said = {
        "worse": ("bad", "is not beaten on", f": {end}"),
        "undecided": ("open", "and the conversion cannot be told apart on", ""),
        "better": ("good", "is beaten on", ""),
        None: ("open", "was not decided on when it was measured on", "; run fffconvert evaluate again"),
    }
    return [
        Finding(kind, f"{called} {verb} {', '.join(groups[found])}{more}.")
        for found, (kind, verb, more) in said.items()
        if groups.get(found)
    ]


def _table(tasks: dict[str, TaskScore]) -> Table:
    def name(item: tuple[str, TaskScore]) -> str:
        limit = f" (first {item[1].limit:,} only)" if item[1].limit else ""
        return f"{item[0]}{limit}\n{item[1].metric}"

    def recovered(item: tuple[str, TaskScore]) -> str:
        unclear = item[1].recovered_unclear
        return "unclear" if unclear else _bounded(item[1].recovered, item[1].recovered_ci95, percent)

    columns: dict[str, Column] = {
        "task": name,
        "converted (95\u00a0%)": lambda item: _bounded(item[1].value, item[1].ci95, number),
        "teacher": lambda item: number(item[1].teacher),
        "dense": lambda item: number(item[1].dense),
        "ablated": lambda item: number(item[1].ablated),
        "random routing": lambda item: number(item[1].random_routing),
        "retained": lambda item: _bounded(item[1].retained, item[1].retained_ci95, percent),
        "recovered": recovered,
        "n": lambda item: whole(item[1].n),
    }
    return Table.of(tasks.items(), columns)


def _bounded(
    value: float | None, bounds: tuple[float, float] | None, show: Callable[[float | None], str]
) -> str:
    """A figure with its interval on the line below."""
    return show(value) + (f"\n({show(bounds[0])} to {show(bounds[1])})" if bounds else "")


def _figures(tasks: dict[str, TaskScore], name: str) -> list[Figure]:
    """One for all metrics that grow towards 1, and one for each of those in units of their own."""
    groups: dict[str, dict[str, TaskScore]] = {}
    for key, task in tasks.items():
        if task.value is None:
            continue
        groups.setdefault("" if task.higher_is_better else task.metric, {})[key] = task
    figures = []
    for index, (metric, chosen) in enumerate(groups.items()):
        caption = "The converted model (with its 95 % interval) beside its teacher and the controls; " + (
            "further left is better." if metric else "further right is better."
        )
        figures.append(Figure(_plot(chosen, f"{name}-{index}", caption), caption))
    return figures


def _plot(tasks: dict[str, TaskScore], name: str, label: str) -> str:
    with canvas(height=1.0 + 0.38 * len(tasks)) as figure:
        axes = figure.add_subplot()
        for row, task in enumerate(tasks.values()):
            _row(axes, row, task)
        axes.set_yticks(range(len(tasks)), [f"{key}\n{task.metric}" for key, task in tasks.items()])
        axes.set_ylim(len(tasks) - 0.5, -0.6)
        axes.grid(axis="y", visible=False)
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=2)
        return svg(figure, name, label)


def _row(axes: Any, row: int, task: TaskScore) -> None:
    values = [getattr(task, key) for key in CONTROLS if getattr(task, key) is not None]
    axes.plot(
        (min([task.value, *values]), max([task.value, *values])), (row, row), color=FAINT, linewidth=0.8
    )
    if task.ci95 is not None:
        axes.plot(task.ci95, (row, row), color=BLUE, linewidth=4, alpha=0.45, solid_capstyle="butt")
    axes.plot(task.value, row, "o", color=BLUE, markersize=7, label="converted", zorder=4)
    for key, (called, colour, marker) in CONTROLS.items():
        value = getattr(task, key)
        if value is not None:
            size = 13 if marker == "|" else 6
            axes.plot(
                value,
                row,
                marker,
                color=colour,
                markersize=size,
                markeredgewidth=2 if marker == "|" else 0.5,
                label=called,
                zorder=3,
            )
