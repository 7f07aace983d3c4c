"""What `fffconvert bench` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fffconvert.cells import Column
from fffconvert.cli import tables

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


def everything(found: ModelBenchmark) -> Iterator[Table | str]:
    """All that `fffconvert bench` shows people."""
    yield from (f"warning: {text}" for text in found.warnings)
    yield tables.pairs(_machine(found))
    yield from _sizes(found.rows)
    if found.generation:
        yield _generation(found.generation)
    if found.quality:
        yield _quality(found.quality)
    yield _runtimes(found.runtimes)
    if found.profile:
        yield _profile(found.profile)
    yield from (*LEGEND, *(f"not measured: {text}" for text in found.problems))


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
    columns: dict[str, Column] = {
        "runtime": lambda row: NAMES[row.runtime],
        "median ms": "median_ms:,.2f",
        "20-80 %": lambda row: f"{row.p20_ms:,.2f}-{row.p80_ms:,.2f}",
        "tokens/s": "tokens_per_second:,.0f",
        "vs torch": lambda row: _times(row.speedup_vs_torch),
        "vs ORT int8": lambda row: _times(row.speedup_vs_ort_int8),
        "vs converted": lambda row: _times(row.speedup_vs_undeployed),
        "error": "median_error:.0e",
    }
    for size in dict.fromkeys((row.batch, row.length) for row in rows):
        members = [row for row in rows if (row.batch, row.length) == size]
        slowest_first = sorted(members, key=lambda row: -row.median_ms)
        title = f"batch {size[0]} x {size[1]} tokens; cap {_times(members[0].amdahl_cap)}"
        yield tables.table(title, slowest_first, columns, left=("runtime",))


def _generation(rows: Sequence[Row]) -> Table:
    cap = rows[0]["amdahl_cap"]
    title = f"one token after another, batch 1, prompt of {rows[0]['prompt']}; cap {_times(cap)}"
    columns: dict[str, Column] = {
        "runtime": _name,
        "ms a token": "median_ms:,.2f",
        "tokens/s": "tokens_per_second:,.1f",
        "vs torch": lambda row: _times(row["speedup_vs_torch"]),
    }
    return tables.table(title, rows, columns, left=("runtime",))


def _quality(rows: Sequence[Row]) -> Table:
    columns: dict[str, Column] = {"runtime": _name, rows[0]["metric"]: "value:.4f"}
    return tables.table(f"quality: {rows[0]['task']}", rows, columns, left=("runtime",))


def _runtimes(rows: Sequence[Row]) -> Table:
    columns: dict[str, Column] = {
        "runtime": _name,
        "load s": "load_seconds:.1f",
        "first call ms": "first_call_ms:,.0f",
        "peak MB": "peak_mb:,.0f",
        "weights MB": "weights_mb:,.0f",
    }
    return tables.table("start and memory", rows, columns, left=("runtime",))


def _profile(rows: Sequence[ProfileRow]) -> Table:
    lines = [{"runtime": row.runtime, "size": f"{row.batch}x{row.length}", **row.ms} for row in rows]
    parts: dict[str, Column] = {part: f"{part}:,.2f" for part in rows[0].ms}
    return tables.table("profile, ms", lines, {"runtime": _name, "size": "size", **parts}, left=("runtime",))


def _name(row: Row) -> str:
    return NAMES[row["runtime"]]


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
