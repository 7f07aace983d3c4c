"""Tables of benchmarks for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any

from rich.table import Table

from fffconvert.cells import Column
from fffconvert.cli.tables import pairs, table

Row = Mapping[str, Any]
LEGEND = (
    "block: the dense block replaced; tree_size: a dense block with as many neurons as the trees have nodes; "
    "float32. Each ratio is against the faster of eager and compiled.",
    "same dtype: against the dense block of the tree's size in the row's dtype (int8: dynamic quantization). "
    "A call is the whole module call; its output is a new tensor, its inputs change from call to call.",
    "warm: the same call while freed memory stays mapped. faults: page faults of one call. fault cost: "
    "filling a new tensor of the output's size, less filling one again. error: over the largest output.",
)
CUDA_LEGEND = (
    "block: the dense block replaced; tree_size: a dense block with as many neurons as the trees have nodes. "
    "Each ratio is against the fastest of eager, fused (cuBLAS's linear and GELU, tanh form) and compiled, "
    "in the dtype of the inputs: that of the rows, but bfloat16 for int8 rows.",
    "A call runs from an idle device until it is idle again, launches included. GB/s: each row that the "
    "batch visits counted once (of a dense block, all weights), inputs and outputs. of card: of what a copy "
    "moves; more than 100 % where rows stay in a cache. error: over the largest output.",
)


def everything(found: Row) -> Iterator[Table | str]:
    """All that `fffconvert bench-layer` shows people."""
    yield from (f"warning: {text}" for text in found["warnings"])
    yield machine(found["machine"])
    for group in groups(found["rows"]):
        yield rows(group)
    yield summary(found["summary"])
    yield from LEGEND if found["published"] is None else CUDA_LEGEND
    yield from (*beside_published(found), *skipped(found["rows"]))
    if not found["settings"]["compile"]:
        yield "torch.compile was left out (--no-compile): the dense blocks may be faster than shown."
    yield from (f"not measured: {text}" for text in found["problems"])


def machine(values: Row) -> Table:
    """What was measured on."""
    shown = {
        name: values[name] for name in ("host", "model", "usable_cores", "capability", "torch", "python")
    }
    shown["features"] = " ".join(values["features"])
    shown["transparent huge pages"] = values["transparent_huge_pages"]
    shown["load, unevenness"] = f"{values['load_1min']:.2f}, {max(values['jitter']):.2f}"
    shown |= values["card"] or {}
    return pairs(shown)


def skipped(members: Iterable[Row]) -> Iterator[str]:
    """What was skipped and why, each once."""
    reasons = {(row["backend"], row["dtype"]): row["skipped"] for row in members if row["skipped"]}
    for (backend, dtype), reason in reasons.items():
        yield f"skipped: {backend} in {dtype}: {reason}"


def beside_published(found: Row) -> Iterator[str]:
    """What others measured on a GPU, beside the same ratio here; nothing on the CPU."""
    if found["published"] is None:
        return
    yield f"published: {found['published']}"
    for row in found["summary"]:
        ratios = [f"{_times(row[f'geomean_vs_fused_{size}'])} {size}" for size in ("tree_size", "block")]
        if row["geomean_vs_fused_tree_size"] is not None:
            who = f"{row['layer']}, {row['inputs']} inputs, {row['backend']}, {row['dtype']}"
            yield f"here over the fused block ({who}): {', '.join(ratios)}"


def groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows that belong in one table: of one layer, kind of inputs and number of threads."""
    for _, group in groupby(rows, key=lambda row: [row[n] for n in ("layer", "inputs", "mode", "threads")]):
        yield list(group)


def rows(members: Sequence[Row]) -> Table:
    """Times and ratios of one layer."""
    one = members[0]
    on_cpu = one["threads"] is not None
    where = f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}" if on_cpu else "CUDA"
    title = (
        f"{one['layer']}, {one['d_model']}x{one['d_hidden']}, {one['mode']}, {one['inputs']} inputs, {where}"
    )
    columns: dict[str, Column] = {
        "tokens": "tokens:,",
        "backend": lambda row: " ".join(part for part in (row["backend"], row["variant"]) if part),
        "dtype": "dtype",
        "median µs": lambda row: "skipped" if row["skipped"] else _us(row["median_us"]),
        "20-80 %": lambda row: "" if row["skipped"] else f"{_us(row['p20_us'])}-{_us(row['p80_us'])}",
        "vs block": lambda row: _times(row["speedup_vs_block"]),
        "vs tree_size": lambda row: _times(row["speedup_vs_tree_size"]),
        "of bound": "share_of_bound:.0%",
    }
    if not on_cpu:
        columns |= {"GB/s": "gb_s:,.0f", "of card": "share_of_bandwidth:.0%"}
    elif one["mode"] == "inference":
        columns |= {
            "same dtype": lambda row: _times(
                row["speedup_vs_int8_dense"] or row["speedup_vs_bfloat16_dense"]
            ),
            "warm µs": lambda row: _us(row["warm_output_us"]),
            "faults": "page_faults:.0f",
            "fault cost µs": lambda row: "" if row["skipped"] else _us(row["page_fault_us"]),
        }
    else:
        columns["vs masked"] = lambda row: _times(row["speedup_vs_masked_dense"])
    columns |= {"error": "max_error:.0e", "left out": "left_out:.1%"}
    found = table(title, members, columns, left=("backend",))
    found.padding = (0, 1, 0, 0)
    for column in found.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    for line, (row, after) in zip(found.rows, pairwise(members), strict=False):
        line.end_section = row["tokens"] != after["tokens"]
    return found


def summary(members: Iterable[Row]) -> Table:
    """Geometric means over the token counts."""

    def ratio(name: str, row: Row) -> str:
        if name == "same":
            name = "vs_int8_dense" if row["dtype"] == "int8" else "vs_bfloat16_dense"
        mean, least = row[f"geomean_{name}"], row[f"min_{name}"]
        return "" if mean is None else f"{_times(mean)} ({_times(least)})"

    columns: dict[str, Column] = {
        "layer": "layer:",
        "inputs": "inputs",
        "backend": "backend",
        "dtype": "dtype",
        "threads": "threads:",
        "vs block": partial(ratio, "vs_block"),
        "vs tree_size": partial(ratio, "vs_tree_size"),
        "same dtype": partial(ratio, "same"),
        "vs masked": partial(ratio, "vs_masked_dense"),
        "bound by counting": lambda row: _times(row["bound_vs_tree_size"]),
        "share of it": "share_of_bound:.0%",
    }
    return table("geometric mean over the token counts (smallest)", members, columns)


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
