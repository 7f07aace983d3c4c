"""Tables of `eval` and `sweep` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from fffconvert.evaluation.sweep import Sweep


def results(document: Mapping[str, Any]) -> Iterator[Table | str]:
    """All parts of the results of `eval`."""
    if document.get("tasks"):
        yield from tasks(document["tasks"])
    for name, show in (("robustness", robustness), ("ablation", ablation), ("routing", routing)):
        if name in document:
            yield from show(document[name])
            if document[name]["limit"] is not None:
                yield f"a quick look at {document[name]['limit']} examples: not a result to report"


def robustness(document: Mapping[str, Any]) -> Iterator[Table | str]:
    """Quality and routing on shifted inputs."""
    heads = (
        "input",
        "kind",
        "metric",
        "value",
        "95 % interval",
        "n",
        "teacher",
        "retained",
        "routing overlap",
        "neurons used",
    )
    found = _table(f"robustness ({document['task']})", heads, left=("input", "kind", "metric"))
    for row in document["rows"]:
        found.add_row(
            row["name"],
            row["kind"],
            row["metric"] or "",
            number(row["value"]),
            interval(row["ci95"]),
            "" if row["n"] is None else f"{row['n']:,}",
            number(row["teacher"]),
            share(row["retained"], None),
            share(row["routing_overlap"], None),
            share(row["neurons_used"], None),
        )
    yield found


def ablation(document: Mapping[str, Any]) -> Iterator[Table | str]:
    """What other routes cost."""
    found = _table(
        f"ablation of the routing ({document['task']})",
        ("routes", "metric", "value", "95 % interval", "n", "cost"),
        left=("routes", "metric"),
    )
    for row in document["rows"]:
        found.add_row(
            row["name"],
            row["metric"],
            number(row["value"]),
            interval(row["ci95"]),
            f"{row['n']:,}",
            number(row["cost"]),
        )
    yield found


def routing(document: Mapping[str, Any]) -> Iterator[Table | str]:
    """How nodes and leaves are used, and by which words."""
    found = _table(
        f"routing of {document['tokens']:,} tokens of {document['source']}",
        ("layer", "tree", "entropy", "dead nodes", "nodes visited by level"),
        left=("layer", "nodes visited by level"),
    )
    for row in document["layers"]:
        levels = " ".join(f"{level['visited']}/{level['nodes']}" for level in row["levels"])
        found.add_row(
            row["name"], str(row["tree"]), f"{row['entropy']:.2f}", f"{row['dead_share']:.1%}", levels
        )
    yield found
    leaves = _table(
        "words of the most visited leaves", ("layer", "leaf", "share", "words"), ("layer", "words")
    )
    for row in document["leaves"]:
        words = " ".join(word for word, _ in row["tokens"])
        leaves.add_row(row["layer"], str(row["leaf"]), f"{row['share']:.1%}", words)
    yield leaves
    for name, row in (document["agreement"] or {}).items():
        yield (
            f"paths of {name}: {row['same_leaf']:.1%} of the tokens reach the same leaf, "
            f"{row['same_decisions']:.1%} of the decisions are the same from the root on"
        )


def tasks(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Table | str]:
    """Figures of the tasks beside teacher and controls."""
    controls = {"ablated": None, "dense": None, "random_routing": None}
    for row in rows.values():
        controls |= dict.fromkeys(name for name in row["ci95_of"] if name != "teacher")
    shown = [name for name in controls if any(row.get(name) is not None for row in rows.values())]
    heads = ("task", "metric", "value", "95 % interval", "n", "teacher", *shown, "retained", "recovered")
    unclear = [name for name, row in rows.items() if row["recovered_unclear"]]
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
            "unclear" if name in unclear else share(row["recovered"], row["recovered_ci95"]),
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
    if unclear:
        yield (
            f"ablating all blocks costs nothing that shows on {', '.join(unclear)}: what a conversion "
            "retains, these tasks cannot tell"
        )
    yield from _verdicts(rows)


def _verdicts(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Says so where a conversion bought nothing, or where the figures do not tell."""
    against = {"dense": "dense blocks of the same width", "ablated": "no blocks at all"}
    for name, row in rows.items():
        for control, called in against.items():
            found = row["verdicts"].get(control)
            if found == "worse":
                yield f"{name}: worse than {called}: the trees bought nothing here"
            elif found == "undecided":
                yield f"{name}: cannot be told from {called}: what the trees bought here, this does not show"


def sweep(found: Sweep) -> Iterator[Table | str]:
    """The points of a sweep; a star marks those that none beats."""
    first = found.rows[0].tasks
    heads = [head for name, score in first.items() for head in (f"{name} {score.metric}", "retained")]
    columns = ("", "trees", "leaf", "trunk", "MACs left", "parameters", *heads)
    table = _table(f"sweep of {found.model}", columns, left=("",))
    for index, row in enumerate(found.rows):
        figures = []
        for score in (row.tasks[name] for name in first):
            figures += [f"{number(score.value)} ({interval(score.ci95)})", share(score.retained, None)]
        table.add_row(
            "*" if index in found.pareto else "",
            f"{row.trees}x{row.depth}",
            str(row.leaf_width),
            str(row.trunk),
            f"{row.active_fraction:.1%}",
            f"{row.parameters_ratio:.2f}x",
            *figures,
        )
    yield table
    limit = found.settings["limit"]
    if limit is not None:
        yield f"a quick look at {limit} examples of a task: not a result to report"


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
