"""Tables of `eval` and `sweep` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table


def results(document: Mapping[str, Any]) -> Iterator[Table | str]:
    """All parts of the results of `eval`."""
    if document.get("tasks"):
        yield from tasks(document["tasks"])


def tasks(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Table | str]:
    """Figures of the tasks beside teacher and controls."""
    controls = {"deleted": None, "dense": None, "random_routing": None}
    for row in rows.values():
        controls |= dict.fromkeys(name for name in row["ci95_of"] if name != "teacher")
    shown = [name for name in controls if any(row.get(name) is not None for row in rows.values())]
    heads = ("task", "metric", "value", "95 % interval", "n", "teacher", *shown, "retained", "recovered")
    found = _table("tasks", [head.replace("_", " ") for head in heads], left=("task", "metric"))
    for name, row in rows.items():
        found.add_row(
            name,
            row["metric"] + ("" if row["higher_is_better"] else " (lower is better)"),
            number(row["value"]),
            interval(row["ci95"]),
            f"{row['n']:,}" + ("" if row["limit"] is None else " (limited)"),
            number(row["teacher"]),
            *(number(row.get(control)) for control in shown),
            share(row["retained"], row["retained_ci95"]),
            share(row["recovered"], row["recovered_ci95"]),
        )
        for other, figure in row.get("others", {}).items():
            found.add_row("", other, number(figure["value"]), interval(figure["ci95"]))
    yield found
    for name, row in rows.items():
        if "bytes" in row:
            yield (
                f"{name}: {row['tokens']:,} tokens of {row['source']}, {row['bytes']:,} bytes, windows of "
                f"{row['length']} every {row['stride']}; {row['bits_per_byte']:.3f} bits per byte"
            )
    limits = {row["limit"] for row in rows.values()} - {None}
    if limits:
        yield f"a quick look at {max(limits)} examples of a task: not a result to report"
    yield from _verdicts(rows)


def _verdicts(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Says so where a conversion bought nothing."""
    for name, row in rows.items():
        dense, value = row["dense"], row["value"]
        if dense is None or value is None:
            continue
        better = value > dense if row["higher_is_better"] else value < dense
        if not better:
            yield f"{name}: no better than dense blocks of the same width: the trees bought nothing here"


def number(value: float | None) -> str:
    """A figure, or nothing."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def interval(ends: Sequence[float] | None) -> str:
    """Both ends of an interval, or nothing."""
    return "" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def share(value: float | None, ends: Sequence[float] | None) -> str:
    """A share with its interval."""
    if value is None:
        return ""
    return f"{value:.1%}" + ("" if ends is None else f" ({ends[0]:.1%} to {ends[1]:.1%})")


def _table(title: str, columns: Sequence[str], left: Sequence[str]) -> Table:
    found = Table(title=title, title_justify="left")
    for column in columns:
        found.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return found
