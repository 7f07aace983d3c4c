"""Tables of `eval` and `sweep` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fffconvert.cells import Column, cell
from fffconvert.cli.tables import shape, table

if TYPE_CHECKING:
    from fffconvert.evaluation.grid import SweepResult, SweepRow


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
    columns: dict[str, Column] = {
        "input": "name",
        "kind": "kind",
        "metric": "metric",
        **VALUE,
        "n": "n:,",
        "teacher": lambda row: number(row["teacher"]),
        "retained": "retained:.1%",
        "routing overlap": "routing_overlap:.1%",
        "neurons used": "neurons_used:.1%",
    }
    yield table(f"robustness ({document['task']})", document["rows"], columns)


def ablation(document: Mapping[str, Any]) -> Iterator[Table | str]:
    """What other routes cost."""
    columns: dict[str, Column] = {
        "routes": "name",
        "metric": "metric",
        **VALUE,
        "n": "n:,",
        "cost": lambda row: number(row["cost"]),
    }
    yield table(f"ablation of the routing ({document['task']})", document["rows"], columns)


def routing(document: Mapping[str, Any]) -> Iterator[Table | str]:
    """How nodes and leaves are used, and by which words."""

    def levels(row: Mapping[str, Any]) -> str:
        return " ".join(f"{level['visited']}/{level['nodes']}" for level in row["levels"])

    def words(row: Mapping[str, Any]) -> str:
        return " ".join(word for word, _ in row["tokens"])

    used: dict[str, Column] = {
        "layer": "name",
        "tree": "tree:",
        "entropy": "entropy:.2f",
        "dead nodes": "dead_share:.1%",
        "nodes visited by level": levels,
    }
    text = f"{document['tokens']:,} tokens of {document['source']}"
    yield table(f"routing of {text}", document["layers"], used, left=("nodes visited by level",))
    leaves: dict[str, Column] = {"layer": "layer", "leaf": "leaf:", "share": "share:.1%", "words": words}
    yield table("words of the most visited leaves", document["leaves"], leaves, left=("words",))
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
    unclear = [name for name, row in rows.items() if row["recovered_unclear"]]
    figures = ("teacher", *shown)
    empty = dict.fromkeys((*figures, "n", "retained", "recovered", "retained_ci95", "recovered_ci95"))
    lines = []
    for name, row in rows.items():
        metric = row["metric"] + ("" if row["higher_is_better"] else " (lower is better)")
        lines.append({**empty, **row, "task": name, "metric": metric})
        lines += [
            {**empty, "task": "", "metric": other} | found for other, found in row.get("others", {}).items()
        ]
    columns: dict[str, Column] = {
        "task": "task",
        "metric": "metric",
        **VALUE,
        "n": lambda row: cell(row, "n:,") + " (limited)" * (row.get("limit") is not None),
        **{name.replace("_", " "): partial(_figure, name) for name in figures},
        "retained": lambda row: share(row["retained"], row["retained_ci95"]),
        "recovered": lambda row: (
            "unclear" if row["task"] in unclear else share(row["recovered"], row["recovered_ci95"])
        ),
    }
    yield table("tasks", lines, columns)
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


def _figure(name: str, row: Mapping[str, Any]) -> str:
    return number(row[name])


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


def sweep(found: SweepResult) -> Iterator[Table | str]:
    """The points of a sweep; a star marks those that none beats."""
    best = [found.rows[index] for index in found.pareto]
    columns: dict[str, Column] = {
        "": lambda row: "*" * (row in best),
        "trees": shape,
        "leaf": "leaf_width:",
        "trunk": "trunk:",
        "MACs left": "active_fraction:.1%",
        "parameters": lambda row: f"{row.parameters_ratio:.2f}x",
    }
    for name, score in found.rows[0].tasks.items():
        columns[f"{name} {score.metric}"] = partial(_bounded, name)
        columns[f"{name} retained"] = partial(_retained, name)
    yield table(f"sweep of {found.model}", found.rows, columns, left=("",))
    limit = found.settings["limit"]
    if limit is not None:
        yield f"a quick look at {limit} examples of a task: not a result to report"


def _bounded(task: str, row: SweepRow) -> str:
    return f"{number(row.tasks[task].value)} ({interval(row.tasks[task].ci95)})"


def _retained(task: str, row: SweepRow) -> str:
    return cell(row.tasks[task], "retained:.1%")


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


VALUE: dict[str, Column] = {
    "value": lambda row: number(row["value"]),
    "95 % interval": lambda row: interval(row["ci95"]),
}
