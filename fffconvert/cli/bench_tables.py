"""Tables of benchmarks for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table

from fffconvert.cli.tables import pairs

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
    columns = ["tokens", "backend", "dtype", "median µs", "20-80 %", "vs block", "vs tree_size", "of bound"]
    inference = one["mode"] == "inference"
    if on_cpu:
        columns += ["same dtype", "warm µs", "faults", "fault cost µs"] if inference else ["vs masked"]
    else:
        columns += ["GB/s", "of card"]
    columns += ["error", "left out"]
    table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in ("backend", "dtype") else "right", no_wrap=True)
    before = None
    for row in members:
        if before not in (None, row["tokens"]):
            table.add_section()
        before = row["tokens"]
        name = " ".join(part for part in (row["backend"], row["variant"]) if part)
        if row["skipped"] is not None:
            table.add_row(f"{row['tokens']:,}", name, row["dtype"], "skipped")
            continue
        same = row["speedup_vs_int8_dense"] or row["speedup_vs_bfloat16_dense"]
        cells = [
            f"{row['tokens']:,}",
            name,
            row["dtype"],
            _us(row["median_us"]),
            f"{_us(row['p20_us'])}-{_us(row['p80_us'])}",
            _times(row["speedup_vs_block"]),
            _times(row["speedup_vs_tree_size"]),
            "" if row["share_of_bound"] is None else f"{row['share_of_bound']:.0%}",
        ]
        if not on_cpu:
            cells += [f"{row['gb_s']:,.0f}", f"{row['share_of_bandwidth']:.0%}"]
        elif inference:
            faults = f"{row['page_faults']:.0f}"
            cells += [_times(same), _us(row["warm_output_us"]), faults, _us(row["page_fault_us"])]
        else:
            cells.append(_times(row["speedup_vs_masked_dense"]))
        error, left_out = row["max_error"], row["left_out"]
        cells += ["" if error is None else f"{error:.0e}", "" if left_out is None else f"{left_out:.1%}"]
        table.add_row(*cells)
    return table


def summary(members: Iterable[Row]) -> Table:
    """Geometric means over the token counts."""
    table = Table(title="geometric mean over the token counts (smallest)", title_justify="left")
    columns = ("layer", "inputs", "backend", "dtype", "threads", "vs block", "vs tree_size", "same dtype")
    for column in (*columns, "vs masked", "bound by counting", "share of it"):
        left = column in ("inputs", "backend", "dtype")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in members:
        same = "vs_int8_dense" if row["dtype"] == "int8" else "vs_bfloat16_dense"
        table.add_row(
            *(str(row[name]) for name in ("layer", "inputs", "backend", "dtype")),
            "" if row["threads"] is None else str(row["threads"]),
            *(
                ""
                if row[f"geomean_{name}"] is None
                else f"{_times(row[f'geomean_{name}'])} ({_times(row[f'min_{name}'])})"
                for name in ("vs_block", "vs_tree_size", same, "vs_masked_dense")
            ),
            _times(row["bound_vs_tree_size"]),
            f"{row['share_of_bound']:.0%}",
        )
    return table


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
