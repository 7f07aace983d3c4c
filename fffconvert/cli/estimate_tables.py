"""Tables of the command `estimate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fffconvert.cli.tables import pairs

Row = Mapping[str, Any]
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float) -> str:
    """A number with three digits and a unit prefix."""
    for size, prefix in _UNITS:
        if number >= size:
            return f"{number / size:.3g}{prefix}"
    return f"{number:.3g}"


def columns(title: str, names: Sequence[str], left: Sequence[str]) -> Table:
    """An empty table; the columns named in `left` are aligned left, the others right."""
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


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
    table = columns(
        title, ("part", "multiply-adds", "share", "converted", "bytes", "converted bytes"), left=("part",)
    )
    macs, after = found["macs_per_token"], found["converted_macs_per_token"]
    moved, moved_after = found["bytes_per_token"], found["converted_bytes_per_token"]
    for part in macs:
        share = macs[part] / macs["total"] if macs["total"] else 0.0
        numbers = (
            short(macs[part]),
            f"{share:.1%}",
            short(after[part]),
            short(moved[part]),
            short(moved_after[part]),
        )
        table.add_row(part.replace("_", " "), *numbers)
    return table


def contexts(rows: Sequence[Row]) -> Table:
    """The gain by context length."""
    timed = "roofline_speedup" in rows[0]
    names = ("context", "feedforward", "speed-up", "limit", *(("on the machine",) if timed else ()))
    table = columns("whole model, by context", names, left=())
    for row in rows:
        numbers = [f"{row['context']:,}", f"{row['feedforward_share']:.1%}"]
        numbers += [f"{row[key]:.2f}x" for key in ("model_speedup", "model_speedup_limit")]
        table.add_row(*numbers, *([f"{row['roofline_speedup']:.2f}x"] if timed else []))
    return table


def times(row: Row) -> Table:
    """Time of one pass on the machine."""
    how = "as measured here" if row["measured"] else "at peak rates: a bound"
    table = columns(
        f"one pass on {row['title']} ({how})", ("model", "time", "speed-up", "bound by"), left=("model",)
    )
    table.add_row("original", f"{row['latency_ms']:,.2f} ms", "", row["bound"])
    table.add_row(
        "converted",
        f"{row['converted_latency_ms']:,.2f} ms",
        f"{row['speedup']:.2f}x",
        row["converted_bound"],
    )
    table.add_row(
        "blocks cost nothing", f"{row['ablated_latency_ms']:,.2f} ms", f"{row['speedup_limit']:.2f}x", ""
    )
    return table


def sweep(rows: Sequence[Row]) -> Table:
    """The rows of a sweep."""
    names = [
        "model",
        "parameters",
        "context",
        "batch",
        "trees",
        "used",
        "share",
        "speed-up",
        "limit",
        "storage",
    ]
    timed = "roofline_speedup" in rows[0]
    table = columns("sweep", (*names, *(("on the machine",) if timed else ())), left=("model",))
    for row in rows:
        numbers = [
            row["model"],
            short(row["parameters"]),
            f"{row['context']:,}",
            f"{row['batch']:,}",
            f"{row['trees']}x{row['depth']}",
            f"{row['neurons_used']:,}",
            f"{row['neuron_share']:.3%}",
            f"{row['model_speedup']:.2f}x",
            f"{row['model_speedup_limit']:.2f}x",
            f"{row['storage_growth']:.2f}x",
        ]
        table.add_row(*numbers, *([f"{row['roofline_speedup']:.2f}x"] if timed else []))
    return table


def comparison(rows: Sequence[Row]) -> Table:
    """What was estimated and what was measured."""
    names = ("model", "batch", "length", "estimated", "measured", "from", "to", "error")
    table = columns("estimate and measurement, in ms", names, left=("model",))
    for row in rows:
        times = (f"{row[key]:,.2f}" for key in ("estimated_ms", "median_ms", "p20_ms", "p80_ms"))
        table.add_row(row["model"], str(row["batch"]), str(row["length"]), *times, f"{row['error']:+.0%}")
    return table


def sources(title: str, rows: Sequence[Row]) -> Table:
    """Names with their sources."""
    table = columns(title, tuple(rows[0]), left=tuple(rows[0]))
    for row in rows:
        table.add_row(*(short(value) if isinstance(value, int) else value for value in row.values()))
    return table


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
