"""What `fffconvert bench MODEL` prints and writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fffconvert.cli import tables
from fffconvert.cli.reporting import output
from fffconvert.errors import FFFError

if TYPE_CHECKING:
    from fffconvert.benchmarks.model.rows import ModelBenchmark, ModelRow, ProfileRow

Row = Mapping[str, Any]
NAMES = {
    "torch": "torch (original)",
    "ablated": "torch, no feedforward",
    "compile": "torch.compile",
    "ort": "ONNX Runtime",
    "ort-int8": "ONNX Runtime int8",
    "openvino": "OpenVINO",
    "undeployed": "converted",
    "deployed": "deployed",
    "fffconvert": "deployed, linear layers float32",
    "fffconvert-int8": "deployed, linear layers int8",
    "exported": "exported to ONNX Runtime",
    "exported-int8": "exported, linear layers int8",
}
LEGEND = (
    "no feedforward: the original without its blocks; what it gains is the cap for exact trees (Amdahl). "
    "Each runtime has a process of its own; they take turns. A call is inputs and outputs as arrays, all in.",
    "error: median over positions, relative; of the original's outputs, or for trees of the converted "
    "model's in plain torch float32. With random weights, trees turn rounding into other paths.",
)


def run(as_json: bool, destination: Path | None, **settings: Any) -> None:
    """Measure, write the document and print it."""
    from fffconvert.benchmarks import ModelBench, bench_model
    from fffconvert.evaluation.run import write_atomically
    from fffconvert.hub.source import resolve

    with output(as_json) as out:
        checked = ModelBench(**settings)
        if destination is None and checked.depth is None:
            folder = resolve(checked.model).folder
            destination = None if folder is None else folder / "bench.json"
        if destination is not None and not destination.resolve().parent.is_dir():
            raise FFFError(f"-o {destination}: its folder does not exist; make it first")
        found = bench_model(checked)
        if destination is not None:
            write_atomically(destination, found)
        out.document(found)
        out.show(*(f"warning: {text}" for text in found.warnings))
        out.show(tables.pairs(_machine(found)))
        out.show(*_sizes(found.rows))
        if found.generation:
            out.show(_generation(found.generation))
        if found.quality:
            out.show(_quality(found.quality))
        out.show(_runtimes(found.runtimes))
        if found.profile:
            out.show(_profile(found.profile))
        out.show(*LEGEND, *(f"not measured: {text}" for text in found.problems))
        if destination is not None:
            out.show(f"wrote {destination}")


def _machine(found: ModelBenchmark) -> dict[str, str]:
    machine = found.machine
    return {
        "model": found.model,
        "processor": machine["model"],
        "threads": str(found.settings["threads"]),
        "features": " ".join(machine["features"]),
        "torch": machine["torch"],
        "load, unevenness": f"{machine['load_1min']:.2f}, {max(machine['jitter']):.2f}",
    }


def _sizes(rows: Sequence[ModelRow]) -> Iterator[Table]:
    for size in dict.fromkeys((row.batch, row.length) for row in rows):
        members = [row for row in rows if (row.batch, row.length) == size]
        cap = members[0].amdahl_cap
        table = _table(
            f"batch {size[0]} x {size[1]} tokens; cap {_times(cap)}",
            (
                "runtime",
                "median ms",
                "20-80 %",
                "tokens/s",
                "vs torch",
                "vs ORT int8",
                "vs converted",
                "error",
            ),
        )
        for row in sorted(members, key=lambda row: -row.median_ms):
            error = row.median_error
            table.add_row(
                NAMES[row.runtime],
                f"{row.median_ms:,.2f}",
                f"{row.p20_ms:,.2f}-{row.p80_ms:,.2f}",
                f"{row.tokens_per_second:,.0f}",
                *(
                    _times(ratio)
                    for ratio in (row.speedup_vs_torch, row.speedup_vs_ort_int8, row.speedup_vs_undeployed)
                ),
                "" if error is None else f"{error:.0e}",
            )
        yield table


def _generation(rows: Sequence[Row]) -> Table:
    cap = rows[0]["amdahl_cap"]
    title = f"one token after another, batch 1, prompt of {rows[0]['prompt']}; cap {_times(cap)}"
    table = _table(title, ("runtime", "ms a token", "tokens/s", "vs torch"))
    for row in rows:
        table.add_row(
            NAMES[row["runtime"]],
            f"{row['median_ms']:,.2f}",
            f"{row['tokens_per_second']:,.1f}",
            _times(row["speedup_vs_torch"]),
        )
    return table


def _quality(rows: Sequence[Row]) -> Table:
    table = _table(f"quality: {rows[0]['task']}", ("runtime", rows[0]["metric"]))
    for row in rows:
        table.add_row(NAMES[row["runtime"]], f"{row['value']:.4f}")
    return table


def _runtimes(rows: Sequence[Row]) -> Table:
    table = _table("start and memory", ("runtime", "load s", "first call ms", "peak MB", "weights MB"))
    for row in rows:
        table.add_row(
            NAMES[row["runtime"]],
            f"{row['load_seconds']:.1f}",
            *(
                "" if row[key] is None else f"{row[key]:,.0f}"
                for key in ("first_call_ms", "peak_mb", "weights_mb")
            ),
        )
    return table


def _profile(rows: Sequence[ProfileRow]) -> Table:
    parts = list(rows[0].ms)
    table = _table("profile, ms", ("runtime", "size", *parts))
    for row in rows:
        cells = (f"{row.ms[part]:,.2f}" for part in parts)
        table.add_row(NAMES[row.runtime], f"{row.batch}x{row.length}", *cells)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("runtime", "size") else "right", no_wrap=True)
    return table


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
