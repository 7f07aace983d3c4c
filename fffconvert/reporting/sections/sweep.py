"""The sweep over trees and depth, with the points that no cheaper one matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fffconvert.evaluation.grid import SweepResult, SweepRow
from fffconvert.reporting.documents import Conversion
from fffconvert.reporting.drawing import BLUE, FAINT, INK, canvas, svg
from fffconvert.reporting.page import Figure, Part, Section, Table, each, interval, number, percent

COMMAND = "fffconvert sweep MODEL --depths 4,8,11 --trees 1,4 --task sts-b -o DIR2"


def section(conversions: Sequence[Conversion]) -> Section:
    """A plot for each task, and the table."""
    parts = each(conversions, lambda one: one.sweep and one.sweep.rows and one.sweep, _describe)
    return Section("sweep", "Sweep over trees and depth", parts, COMMAND)


def _describe(_: Conversion, found: SweepResult, index: int) -> Iterator[Part]:
    names = list(dict.fromkeys(name for row in found.rows for name in row.tasks))
    for number_, name in enumerate(names):
        caption = (
            f"{name} of each shape against its share of the multiply-adds of the dense blocks. Filled "
            "points joined by a line: no cheaper shape is as good."
        )
        yield Figure(_plot(found, name, f"sweep{index}-{number_}", caption), caption)
    yield _table(found, names)


def shape(row: SweepRow) -> str:
    """The shape in words: 1x11, with its trunk and leaves."""
    return (
        f"{row.trees}x{row.depth}"
        + (f"+t{row.trunk}" if row.trunk else "")
        + (f"+L{row.leaf_width}" if row.leaf_width else "")
    )


def _table(sweep: SweepResult, names: Sequence[str]) -> Table:
    head = ["shape", "Pareto", "multiply-adds left", "parameters"]
    for name in names:
        head += [name, "95 % interval", "retained"]
    rows = []
    for index, row in sorted(enumerate(sweep.rows), key=lambda item: item[1].active_fraction):
        ratio = "–" if row.parameters_ratio is None else f"{row.parameters_ratio:.2f}x"
        cells = [shape(row), "yes" if index in sweep.pareto else "", percent(row.active_fraction), ratio]
        for name in names:
            score = row.tasks.get(name)
            cells += [
                number(score.value if score else None),
                interval(score.ci95 if score else None),
                percent(score.retained if score else None),
            ]
        rows.append(tuple(cells))
    return Table(tuple(head), tuple(rows), left=2, caption="+t: rank of the trunk; +L: neurons of a leaf.")


def _plot(sweep: SweepResult, name: str, figure_name: str, label: str) -> str:
    with canvas() as figure:
        scores = [row.tasks[name] for row in sweep.rows if name in row.tasks]
        axes = figure.add_subplot(
            xlabel="multiply-adds, share of the dense blocks",
            ylabel=f"{name}, {scores[0].metric}",
            xscale="log",
        )
        best = sorted(
            (sweep.rows[i].active_fraction, sweep.rows[i].tasks[name].value)
            for i in sweep.pareto
            if i < len(sweep.rows)
            and name in sweep.rows[i].tasks
            and sweep.rows[i].tasks[name].value is not None
        )
        if best:
            axes.plot(*zip(*best, strict=True), color=BLUE, linewidth=1.2)
        for index, row in enumerate(sweep.rows):
            score = row.tasks.get(name)
            if score is None or score.value is None:
                continue
            on_front = index in sweep.pareto
            if score.ci95 is not None:
                axes.plot((row.active_fraction,) * 2, score.ci95, color=FAINT, linewidth=1, zorder=1)
            axes.plot(
                row.active_fraction,
                score.value,
                "o",
                color=BLUE,
                markersize=7,
                fillstyle="full" if on_front else "none",
            )
            axes.annotate(
                shape(row),
                (row.active_fraction, score.value),
                (5, 5),
                textcoords="offset points",
                fontsize=8,
                color=INK,
            )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}" if value >= 1 else f"{value:.1%}")
        axes.xaxis.set_minor_formatter("")
        axes.margins(x=0.12, y=0.12)
        return svg(figure, figure_name, label)
