"""Speed: the whole model beside its Amdahl cap, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fffconvert.report.documents import Benchmark, BenchRow, Conversion
from fffconvert.report.drawing import FAINT, INK, MARKERS, SERIES, canvas, svg
from fffconvert.report.page import Figure, Heading, Part, Section, Table, Text, number


def section(conversions: Sequence[Conversion]) -> Section:
    """Times of the whole model at every size that was measured."""
    parts: list[Part] = []
    for index, conversion in enumerate(conversions):
        if conversion.benchmark is None or not conversion.benchmark.rows:
            continue
        if len(conversions) > 1:
            parts.append(Heading(conversion.label))
        rows = conversion.benchmark.rows
        if any(row.speedup_vs_torch is not None for row in rows):
            caption = (
                "The whole model's speed-up over the original in torch. The short line over a size is the "
                "Amdahl cap: what it would be if the feedforward blocks cost nothing."
            )
            parts.append(Figure(_plot(rows, f"speed{index}", caption), caption))
        parts += [_table(rows), *_profile(conversion.benchmark)]
    if parts:
        parts.append(
            Text(
                "Multiply-adds are not seconds: a tree reads other rows for every token, a dense product "
                "runs near the processor's peak. No runtime can pass the cap by its feedforward blocks alone."
            )
        )
    return Section("speed", "Speed", tuple(parts), "fffconvert bench DIR -o DIR/bench.json")


def _table(rows: Sequence[BenchRow]) -> Table:
    return Table(
        (
            "runtime",
            "batch",
            "length",
            "median ms",
            "20 % to 80 %",
            "speed-up",
            "Amdahl cap",
            "largest error",
        ),
        tuple(
            (
                row.runtime,
                str(row.batch),
                str(row.length),
                number(row.median_ms, 2),
                f"{number(row.p20_ms, 2)} to {number(row.p80_ms, 2)}",
                _times(row.speedup_vs_torch),
                _times(row.amdahl_cap),
                "–" if row.max_error is None else f"{row.max_error:.1e}",
            )
            for row in rows
        ),
        caption="Speed-ups are over the original model in torch, same batch, length and threads.",
    )


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}x"


def _plot(rows: Sequence[BenchRow], name: str, label: str) -> str:
    sizes = list(dict.fromkeys((row.batch, row.length) for row in rows))
    runtimes = list(dict.fromkeys(row.runtime for row in rows))
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


def _profile(benchmark: Benchmark) -> list[Part]:
    """Where the time of a call goes, if the benchmark has looked."""
    rows = benchmark.profile
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        return []
    if not all(isinstance(row, Mapping) for row in rows):
        return []
    head = tuple(dict.fromkeys(str(key) for row in rows for key in row))
    cells = tuple(tuple(_plain(row.get(key)) for key in head) for row in rows)
    return [
        Table(tuple(key.replace("_", " ") for key in head), cells, caption="Where the time goes, by layer.")
    ]


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, float) else "–" if value is None else str(value)
