"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from fffconvert.planning import leaf_in_words


def blocks(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The feedforward blocks of a model, from the `blocks` of `inspect --json`."""
    table = _table(
        "feedforward blocks",
        ("name", "layer", "kind", "d_model", "d_hidden", "activation", "bias", "calls", "parameters", "MACs"),
        left=("name", "kind", "activation", "bias"),
    )
    for row in rows:
        table.add_row(
            row["name"],
            "" if row["layer"] is None else str(row["layer"]),
            row["kind"],
            str(row["d_model"]),
            str(row["d_hidden"]),
            row["activation"],
            "yes" if row["biases"] else "no",
            str(row["shared_calls"]),
            f"{row['parameters']:,}",
            f"{row['macs_share']:.1%}",
        )
    return table


def deployments(rows: Iterable[Mapping[str, Any]], tokens: Sequence[int]) -> Table:
    """What computes each layer, from the `layers` of `deploy --json`."""
    counts = "/".join(map(str, tokens))
    table = _table(
        "deployment",
        ("name", "backend", "rows", f"µs for {counts} tokens", "dense block", "error", "reason"),
        left=("name", "backend", "rows", "reason"),
    )
    for row in rows:
        dense = row["dense_microseconds"]
        table.add_row(
            row["name"],
            row["backend"],
            row["dtype"],
            " / ".join(f"{value:.0f}" for value in row["microseconds"]),
            "not at hand" if dense is None else " / ".join(f"{value:.0f}" for value in dense),
            f"{row['error']:.1e}",
            row["reason"],
        )
    return table


def linears(rows: Iterable[Mapping[str, Any]], tokens: Sequence[int]) -> Table:
    """The linear layers beside the trees, from the `linears` of `deploy --json`; those alike in one row."""
    counts = "/".join(map(str, tokens))
    table = _table(
        "linear layers beside the trees",
        ("maps", "first", "shape", "computed in", f"as stored, µs for {counts} tokens", "int8"),
        left=("first", "computed in"),
    )
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["d_in"], row["d_out"], row["dtype"]), []).append(row)
    for (kind, d_in, d_out, dtype), members in groups.items():
        times = (members[0][key] for key in ("microseconds", "int8_microseconds"))
        table.add_row(
            str(len(members)),
            members[0]["name"] + (" (trunk)" if kind == "trunk" else ""),
            f"{d_in}x{d_out}",
            dtype,
            *(" / ".join(f"{value:.0f}" for value in values) for values in times),
        )
    return table


def skipped(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What looked like a block and was skipped."""
    table = _table("skipped", ("name", "reason"), left=("name", "reason"))
    for row in rows:
        table.add_row(row["name"] or "(model)", row["reason"])
    return table


def layers(rows: Iterable[Mapping[str, Any]]) -> Table:
    """FFF layers, planned, fitted or found in a checkpoint; what is not known of them is left out."""
    table = _table(
        "fast feedforward layers",
        (
            "name",
            "trees",
            "trunk",
            "leaf",
            "width",
            "MACs left",
            "R²",
            "R² per token",
            "parameters",
            "before",
        ),
        left=("name",),
    )
    for row in rows:
        fraction, before = row.get("active_fraction"), row.get("parameters_before")
        scores = [row.get("r2_heldout"), row.get("token_r2_heldout")]
        table.add_row(
            row["name"],
            f"{row['trees']}x{row['depth']}",
            str(row["trunk"]),
            leaf_in_words(row["leaf_width"], row.get("leaf_sparsity", 0.0)),
            str(row["active_width"]),
            "" if fraction is None else f"{fraction:.1%}",
            *("" if score is None else f"{score:.3f}" for score in scores),
            f"{row['parameters']:,}",
            "" if before is None else f"{before:,}",
        )
    return table


def routing(rows: Iterable[Mapping[str, Any]]) -> Table:
    """How fitted layers route held-out tokens."""
    table = _table(
        "routing of held-out tokens",
        (
            "name",
            "entropy",
            "dead nodes",
            "fullest path / mean",
            "neurons skipped",
            "margin 5 %",
            "50 %",
            "95 %",
        ),
        left=("name",),
    )
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['routing_entropy']:.2f}",
            f"{row['dead_node_share']:.1%}",
            f"{row['path_balance']:.1f}",
            f"{row['skipped_share']:.1%}",
            *(f"{margin:.2f}" for margin in row["margins"]),
        )
    return table


def plan(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What each block is to become, from the `blocks` of `plan --json`."""
    table = _table(
        "plan",
        ("name", "trees", "trunk", "leaf", "MACs", "expected error", "sensitivity", "parameters"),
        left=("name",),
    )
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['trees']}x{row['depth']}",
            str(row["trunk"]),
            leaf_in_words(row["leaf_width"], row["leaf_sparsity"]),
            f"{row['active_fraction']:.1%}",
            f"{row['expected_error']:.3f}",
            f"{row['sensitivity']:.2g}",
            f"{row['parameters']:,}",
        )
    return table


def stored(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What is stored between runs, by kind."""
    table = _table("stored between runs", ("kind", "entries", "MB", "oldest, days"), left=("kind",))
    for row in rows:
        table.add_row(
            row["kind"], f"{row['entries']:,}", f"{row['bytes'] / 1e6:,.1f}", f"{row['oldest_days']:.1f}"
        )
    return table


def similarity(models: Mapping[str, Mapping[str, float]]) -> Table:
    """How well models judge the similarity of sentences."""
    table = _table(
        "similarity of sentences",
        ("model", "rank correlation with grades", "correlation with the original"),
        left=("model",),
    )
    for name, row in models.items():
        shown = "feedforward blocks ablated" if name == "ablated" else name
        table.add_row(shown, f"{row['spearman_with_grades']:.3f}", f"{row['correlation_with_original']:.3f}")
    return table


def pairs(values: Mapping[str, Any]) -> Table:
    """Names and values side by side, without a head."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, str(value))
    return table


def _table(title: str, columns: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table
