"""Tables of the command `estimate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fffconvert.cells import Column
from fffconvert.cli.tables import pairs, shape, table

Row = Mapping[str, Any]
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float) -> str:
    """A number with three digits and a unit prefix."""
    for size, prefix in _UNITS:
        if number >= size:
            return f"{number / size:.3g}{prefix}"
    return f"{number:.3g}"


def headline(found: Row) -> Table:
    """What one layer becomes, and what the model gains."""
    neurons = f"{found['d_hidden']:,}{' gated' if found['gated'] else ''}"
    experts = " of the experts that a token meets" if found["experts"] else ""
    published = found["parameters_published"]
    values = {
        "model": found["model"] + (f" ({found['source']})" if found["source"] else ""),
        "parameters": f"{found['parameters']:,}" + (f" ({published:,} published)" if published else ""),
        "feedforward neurons": f"{neurons} in each of {found['layers']} layers of width "
        f"{found['d_model']:,}{experts}",
        "trees": f"{found['trees']}x{found['depth']}, {found['nodes']:,} nodes each, trunk {found['trunk']}",
        "neurons used": f"{found['neurons_used']:,}: {found['neuron_share']:.4%} of the block's, "
        f"{found['node_share']:.4%} of the tree's",
        "block's multiply-adds": f"{found['ffn_speedup_vs_block']:,.2f}x fewer than the block, "
        f"{found['ffn_speedup_vs_tree_size']:,.2f}x fewer than a dense block of the tree's size",
        "model's multiply-adds": f"{found['model_speedup']:.2f}x fewer; "
        f"{found['model_speedup_limit']:.2f}x is the "
        "limit if the blocks cost nothing",
        "weights": f"{short(found['memory_bytes']['weights'])}B, converted "
        f"{short(found['memory_bytes']['converted_weights'])}B ({found['storage_growth']:.2f}x)",
        "keys and values": f"{short(found['memory_bytes']['keys_and_values'])}B",
        "break-even": _break_even(found["break_even_tokens"]),
        "training": _training(found["training"]),
    }
    if not found["memory_bytes"]["keys_and_values"]:
        del values["keys and values"]
    return pairs(values)


def parts(found: Row) -> Table:
    """Multiply-adds and bytes per token, by part."""
    work = found["work"]
    title = (
        f"per token: {work['phase']}, batch {work['batch']:,}, context {work['context']:,}, {found['dtype']}"
    )
    macs = found["macs_per_token"]
    columns: dict[str, Column] = {
        "part": lambda part: part.replace("_", " "),
        "multiply-adds": lambda part: short(macs[part]),
        "share": lambda part: f"{macs[part] / macs['total'] if macs['total'] else 0.0:.1%}",
        "converted": lambda part: short(found["converted_macs_per_token"][part]),
        "bytes": lambda part: short(found["bytes_per_token"][part]),
        "converted bytes": lambda part: short(found["converted_bytes_per_token"][part]),
    }
    return table(title, macs, columns, left=("part",))


def _ratio(key: str) -> Column:
    return lambda row: "" if row[key] is None else f"{row[key]:.2f}x"


def _timed(rows: Sequence[Row]) -> dict[str, Column]:
    """What was timed on a machine, if it was."""
    return {"on the machine": _ratio("roofline_speedup")} if "roofline_speedup" in rows[0] else {}


def contexts(rows: Sequence[Row]) -> Table:
    """The gain by context length."""
    columns: dict[str, Column] = {
        "context": "context:,",
        "feedforward": "feedforward_share:.1%",
        "speed-up": _ratio("model_speedup"),
        "limit": _ratio("model_speedup_limit"),
        **_timed(rows),
    }
    return table("whole model, by context", rows, columns)


def times(row: Row) -> Table:
    """Time of one pass on the machine."""
    how = "as measured here" if row["measured"] else "at peak rates: a bound"
    columns: dict[str, Column] = {
        "model": "model",
        "time": lambda line: f"{row[line['time']]:,.2f} ms",
        "speed-up": _ratio("speed-up"),
        "bound by": "bound:",
    }
    keys = ("model", "time", "speed-up", "bound")
    lines = (
        ("original", "latency_ms", None, row["bound"]),
        ("converted", "converted_latency_ms", row["speedup"], row["converted_bound"]),
        ("blocks cost nothing", "ablated_latency_ms", row["speedup_limit"], None),
    )
    rows = [dict(zip(keys, line, strict=True)) for line in lines]
    return table(f"one pass on {row['title']} ({how})", rows, columns)


def sweep(rows: Sequence[Row]) -> Table:
    """The rows of a sweep."""
    columns: dict[str, Column] = {
        "model": "model",
        "parameters": lambda row: short(row["parameters"]),
        "context": "context:,",
        "batch": "batch:,",
        "trees": shape,
        "used": "neurons_used:,",
        "share": "neuron_share:.3%",
        "speed-up": _ratio("model_speedup"),
        "limit": _ratio("model_speedup_limit"),
        "storage": _ratio("storage_growth"),
        **_timed(rows),
    }
    return table("sweep", rows, columns)


def comparison(rows: Sequence[Row]) -> Table:
    """What was estimated and what was measured."""
    columns: dict[str, Column] = {
        "model": "model",
        "batch": "batch:",
        "length": "length:",
        "estimated": "estimated_ms:,.2f",
        "measured": "median_ms:,.2f",
        "from": "p20_ms:,.2f",
        "to": "p80_ms:,.2f",
        "error": "error:+.0%",
    }
    return table("estimate and measurement, in ms", rows, columns)


def sources(title: str, rows: Sequence[Row]) -> Table:
    """Names with their sources."""
    columns: dict[str, Column] = {name: name for name in rows[0]}
    if "parameters" in columns:
        columns["parameters"] = lambda row: short(row["parameters"])
    return table(title, rows, columns, left=("parameters",))


def _break_even(tokens: int | None) -> str:
    if tokens is None:
        return "never: all nodes together are fewer bytes than the block"
    return f"from {tokens:,} tokens in a pass on, the visited nodes are as many bytes as the block"


def _training(row: Row) -> str:
    hours = ""
    if "converted_gpu_hours" in row:
        hours = (
            f"; {row['converted_gpu_hours']:,.0f}, {row['distillation_gpu_hours']:,.0f} and "
            f"{row['dense_gpu_hours']:,.0f} GPU hours at {row['utilisation']:.0%} of the peak"
        )
    return (
        f"{short(row['tokens'])} tokens: {row['converted_flops']:.2g} FLOPs, "
        f"{row['distillation_flops']:.2g} with a "
        f"teacher, {row['dense_flops']:.2g} for the original{hours}"
    )
