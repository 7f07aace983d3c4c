"""Speed: the whole model beside its Amdahl cap, and where the time goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fffconvert.benchmarks.model.rows import ModelBenchmark, ModelRow, ProfileRow
from fffconvert.cells import Column
from fffconvert.reporting.documents import Conversion
from fffconvert.reporting.drawing import FAINT, INK, MARKERS, PAPER, SERIES, canvas, svg
from fffconvert.reporting.page import Figure, Finding, Part, Section, Table, Text, each, number

ABLATED = "ablated"
"""The model without its blocks: the Amdahl cap itself."""


def section(conversions: Sequence[Conversion]) -> Section:
    """Times of the whole model at every size that was measured."""
    parts = each(conversions, lambda one: one.benchmark, _describe)
    if parts:
        parts += (
            Text(
                "Multiply-adds are not seconds: a tree reads other rows for every token, a dense product "
                "runs near the processor's peak. No runtime can pass the cap by its feedforward blocks alone."
            ),
        )
    return Section("speed", "Speed", parts, "fffconvert bench DIR")


def _describe(_: Conversion, found: ModelBenchmark, index: int) -> Iterator[Part]:
    if not found.rows:
        return
    if any(row.speedup_vs_torch is not None for row in found.rows):
        caption = (
            "The whole model's speed-up over the original in torch. The short line over a size is the "
            "Amdahl cap: what it would be if the feedforward blocks cost nothing."
        )
        yield Figure(_plot(found.rows, f"speed{index}", caption), caption)
    columns: dict[str, Column] = {
        "runtime": "runtime",
        "batch": "batch",
        "length": "length",
        "median ms": lambda row: number(row.median_ms, 2),
        "20 % to 80 %": lambda row: f"{number(row.p20_ms, 2)} to {number(row.p80_ms, 2)}",
        "speed-up": lambda row: _times(row.speedup_vs_torch),
        "Amdahl cap": lambda row: _times(row.amdahl_cap),
        "largest error": "max_error:.1e",
    }
    caption = "Speed-ups are over the original model in torch, same batch, length and threads."
    yield Table.of(found.rows, columns, caption=caption)
    if found.profile:
        yield from _profile(found.profile, f"profile{index}")
    yield from (Finding("open", doubt) for doubt in (*found.problems, *found.warnings))


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}x"


def _plot(rows: Sequence[ModelRow], name: str, label: str) -> str:
    sizes = list(dict.fromkeys((row.batch, row.length) for row in rows))
    runtimes = list(dict.fromkeys(row.runtime for row in rows if row.runtime != ABLATED))
    caps = {(row.batch, row.length): row.amdahl_cap for row in rows if row.amdahl_cap is not None}
    with canvas() as figure:
        axes = figure.add_subplot(xlabel="batch x length", ylabel="speed-up of the whole model")
        for index, runtime in enumerate(runtimes):
            found = {
                sizes.index((row.batch, row.length)): row.speedup_vs_torch
                for row in rows
                if row.runtime == runtime and row.speedup_vs_torch is not None
            }
            if found:
                shift = 0.5 * ((index + 0.5) / len(runtimes) - 0.5)
                axes.plot(
                    [position + shift for position in found],
                    list(found.values()),
                    MARKERS[index % len(MARKERS)],
                    color=SERIES[index % len(SERIES)],
                    label=runtime,
                )
        for index, (size, cap) in enumerate(caps.items()):
            where = sizes.index(size)
            axes.plot(
                (where - 0.3, where + 0.3),
                (cap, cap),
                color=INK,
                linewidth=1.5,
                label="" if index else "Amdahl cap",
            )
        axes.axhline(1, color=FAINT, linewidth=1)
        axes.set_xticks(range(len(sizes)), [f"{batch}x{length}" for batch, length in sizes])
        axes.set_xlim(-0.6, len(sizes) - 0.4)
        axes.set_ylim(0, None)
        figure.legend(loc="outside upper left", ncols=3)
        return svg(figure, name, label)


def _profile(rows: Sequence[ProfileRow], name: str) -> list[Part]:
    """Where the time of a call goes: all sizes in a table, the largest as a picture."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.ms))
    size = max((row.batch, row.length) for row in rows)
    drawn = [row for row in rows if (row.batch, row.length) == size]
    caption = f"Milliseconds by part of the model, in a call of {size[0]}x{size[1]} tokens."
    table = Table(
        ("runtime", "batch", "length", *(f"{kind}, ms" for kind in kinds)),
        tuple(
            (row.runtime, str(row.batch), str(row.length), *(number(row.ms.get(kind), 2) for kind in kinds))
            for row in rows
        ),
        caption="Where the time goes.",
    )
    return [Figure(_parts(drawn, kinds, name, caption), caption), table]


def _parts(rows: Sequence[ProfileRow], kinds: Sequence[str], name: str, label: str) -> str:
    with canvas(height=1.1 + 0.4 * len(rows)) as figure:
        axes = figure.add_subplot(xlabel="milliseconds")
        for y, row in enumerate(rows):
            left = 0.0
            for index, kind in enumerate(kinds):
                width = row.ms.get(kind, 0.0)
                colour = SERIES[index % len(SERIES)]
                axes.barh(
                    y, width, left=left, height=0.6, color=colour, edgecolor=PAPER, label="" if y else kind
                )
                left += width
        axes.set_yticks(range(len(rows)), [row.runtime for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=4)
        return svg(figure, name, label)
