"""Tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from fffconvert.cells import Column, cell
from fffconvert.planning import leaf_in_words

Row = Mapping[str, Any]


def table(title: str, rows: Iterable[Any], columns: Mapping[str, Column], left: Sequence[str] = ()) -> Table:
    """A table of records or dictionaries.

    Args:
        title: Stands above it.
        rows: The records.
        columns: By heading; fields without a format are words, which stand on the left.
        left: Further columns of words.
    """
    found = Table(title=title, title_justify="left")
    for head, column in columns.items():
        words = head in left or (isinstance(column, str) and ":" not in column)
        found.add_column(head, justify="left" if words else "right", overflow="fold")
    for row in rows:
        found.add_row(*(cell(row, column) for column in columns.values()))
    return found


def blocks(rows: Sequence[Row]) -> Table:
    """The feedforward blocks of a model, from the `blocks` of `inspect --json`."""
    columns: dict[str, Column] = {
        "name": "name",
        "layer": "layer:",
        "kind": "kind",
        "d_model": "d_model:",
        "d_hidden": "d_hidden:",
        "activation": "activation",
        "bias": lambda row: "yes" if row["biases"] else "no",
        "calls": "shared_calls:",
        "parameters": "parameters:,",
        "MACs": "macs_share:.1%",
    }
    return table("feedforward blocks", rows, columns, left=("bias",))


def deployments(rows: Iterable[Row], tokens: Sequence[int]) -> Table:
    """What computes each layer, from the `layers` of `deploy --json`."""
    columns: dict[str, Column] = {
        "name": "name",
        "backend": "backend",
        "rows": "dtype",
        f"µs for {_counts(tokens)} tokens": _times("microseconds"),
        "dense block": _times("dense_microseconds"),
        "error": "error:.1e",
        "reason": "reason",
    }
    return table("deployment", rows, columns)


def linears(rows: Iterable[Row], tokens: Sequence[int]) -> Table:
    """The linear layers beside the trees, from the `linears` of `deploy --json`; those alike in one row."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("kind", "d_in", "d_out", "dtype")), []).append(row)
    columns: dict[str, Column] = {
        "maps": "maps:",
        "first": lambda row: row["name"] + " (trunk)" * (row["kind"] == "trunk"),
        "shape": lambda row: f"{row['d_in']}x{row['d_out']}",
        "computed in": "dtype",
        f"as stored, µs for {_counts(tokens)} tokens": _times("microseconds"),
        "int8": _times("int8_microseconds"),
    }
    alike = [{**members[0], "maps": len(members)} for members in groups.values()]
    return table("linear layers beside the trees", alike, columns, left=("first",))


def _counts(tokens: Sequence[int]) -> str:
    return "/".join(map(str, tokens))


def _times(key: str) -> Callable[[Row], str]:
    return lambda row: "not at hand" if row[key] is None else " / ".join(f"{time:.0f}" for time in row[key])


def skipped(rows: Iterable[Row]) -> Table:
    """What looked like a block and was skipped."""
    columns: dict[str, Column] = {"name": lambda row: row["name"] or "(model)", "reason": "reason"}
    return table("skipped", rows, columns, left=("name",))


def _leaf(row: Row) -> str:
    return leaf_in_words(row["leaf_width"], row["leaf_sparsity"])


def shape(row: Any) -> str:
    """Trees and depth of a record or dictionary, as in 1x11."""
    return f"{cell(row, 'trees')}x{cell(row, 'depth')}"


def layers(rows: Sequence[Row]) -> Table:
    """FFF layers, planned, fitted or found in a checkpoint; what is not known of them is left out."""
    names = ("active_fraction", "r2_heldout", "token_r2_heldout", "parameters_before")
    columns: dict[str, Column] = {
        "name": "name",
        "trees": shape,
        "trunk": "trunk:",
        "leaf": _leaf,
        "width": "active_width:",
        "MACs left": "active_fraction:.1%",
        "R²": "r2_heldout:.3f",
        "R² per token": "token_r2_heldout:.3f",
        "parameters": "parameters:,",
        "before": "parameters_before:,",
    }
    return table("fast feedforward layers", ({**dict.fromkeys(names), **row} for row in rows), columns)


def routing(rows: Iterable[Row]) -> Table:
    """How fitted layers route held-out tokens."""
    columns: dict[str, Column] = {
        "name": "name",
        "entropy": "routing_entropy:.2f",
        "dead nodes": "dead_node_share:.1%",
        "fullest path / mean": "path_balance:.1f",
        "neurons skipped": "skipped_share:.1%",
        "margin 5 %": lambda row: f"{row['margins'][0]:.2f}",
        "50 %": lambda row: f"{row['margins'][1]:.2f}",
        "95 %": lambda row: f"{row['margins'][2]:.2f}",
    }
    return table("routing of held-out tokens", rows, columns)


def plan(rows: Iterable[Row]) -> Table:
    """What each block is to become, from the `blocks` of `plan --json`."""
    columns: dict[str, Column] = {
        "name": "name",
        "trees": shape,
        "trunk": "trunk:",
        "leaf": _leaf,
        "MACs": "active_fraction:.1%",
        "expected error": "expected_error:.3f",
        "sensitivity": "sensitivity:.2g",
        "parameters": "parameters:,",
    }
    return table("plan", rows, columns)


def stored(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What is stored between runs, by kind."""
    columns: dict[str, Column] = {
        "kind": "kind",
        "entries": "entries:,",
        "MB": lambda row: f"{row['bytes'] / 1e6:,.1f}",
        "oldest, days": "oldest_days:.1f",
    }
    return table("stored between runs", rows, columns, left=("kind",))


def similarity(models: Mapping[str, Mapping[str, float]]) -> Table:
    """How well models judge the similarity of sentences."""
    columns: dict[str, Column] = {
        "model": "name",
        "rank correlation with grades": "spearman_with_grades:.3f",
        "correlation with the original": "correlation_with_original:.3f",
    }
    names = {"ablated": "feedforward blocks ablated"}
    rows = ({"name": names.get(name, name), **row} for name, row in models.items())
    return table("similarity of sentences", rows, columns)


def pairs(values: Mapping[str, Any]) -> Table:
    """Names and values side by side, without a head."""
    found = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    found.add_column()
    found.add_column(overflow="fold")
    for name, value in values.items():
        found.add_row(name, str(value))
    return found
