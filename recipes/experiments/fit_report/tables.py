"""Tables of the fit report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rich.table import Table

from fffconvert.cells import Column
from fffconvert.cli.tables import table

WAYS = {
    "paths": "1x10, closed form",
    "paths_refined": "1x10, refined",
    "dense_small": "dense block of width 11, Adam",
    "leaves": "leaves, closed form",
    "leaves_refined": "leaves, refined",
    "leaves_random_routing": "leaves, random routing",
    "dense_large": "dense block of width 112, Adam",
    "neurons": "112 original neurons, refitted",
    "experts": "clustered experts of 16, refitted",
    "leaves_depth_5": "leaves of 106, depth 5",
    "leaves_depth_6": "leaves of 105, depth 6",
}
GOALS = (
    ("paths", "dense_small", 0.15),
    ("paths_refined", "dense_small", 0.25),
    ("leaves", "dense_large", 0.30),
    ("leaves_refined", "dense_large", 0.40),
    ("leaves", "neurons", 0.40),
    ("leaves", "experts", 0.0),
    ("leaves_depth_5", "dense_large", 0.30),
    ("leaves_depth_6", "dense_large", 0.30),
)


def report(found: Mapping[str, Any]) -> Iterator[Table]:
    """One table per section that was measured."""
    if "blocks" in found:
        yield _errors(found["blocks"])
        yield _goals(found["blocks"]["mean"])
    if "sts" in found:
        yield _sts(found["sts"])
    if "mlm" in found:
        yield _mlm(found["mlm"])
    if "lm" in found:
        yield _lm(found["lm"])


def _errors(section: Mapping[str, Any]) -> Table:
    mean, blocks = section["mean"], section["blocks"].values()

    def errors(measured: Mapping[str, Any], way: str) -> str:
        return f"{measured[way]['error']:.3f}\n{measured[way]['token_error']:.3f}"

    columns: dict[str, Column] = {
        "way": lambda way: WAYS[way],
        **{str(number): partial(errors, measured) for number, measured in enumerate(blocks)},
        "mean": partial(errors, mean),
        "width": lambda way: f"{mean[way]['active_width']:.0f}",
        "storage": lambda way: f"{mean[way]['storage']:.2f}x",
        "s": lambda way: f"{mean[way]['seconds']:.0f}",
    }
    title = "error of the blocks' outputs on held-out text: 1 - R², 1 - R² per token"
    return table(title, [way for way in WAYS if way in mean], columns, left=("way",))


def _goals(mean: Mapping[str, Any]) -> Table:
    def lower(key: str, goal: tuple[str, str, float]) -> str:
        return f"{1 - mean[goal[0]][key] / mean[goal[1]][key]:.1%}"

    columns: dict[str, Column] = {
        "conversion": lambda goal: WAYS[goal[0]],
        "control": lambda goal: WAYS[goal[1]],
        "1 - R²": partial(lower, "error"),
        "1 - R² per token": partial(lower, "token_error"),
        "goal": lambda goal: f"{goal[2]:.0%}" if goal[2] else "",
    }
    goals = [goal for goal in GOALS if goal[0] in mean]
    return table("how much lower the mean error is", goals, columns, left=("conversion", "control"))


def _sts(section: Mapping[str, Any]) -> Table:
    title = f"STS-B test, {section['active_fraction']:.1%} active, {section['storage']:.2f}x stored"
    original = section["spearman"]["original"]
    columns: dict[str, Column] = {
        "model": lambda row: row[0].replace("_", " "),
        "Spearman": lambda row: f"{row[1]:.4f}",
        "of the original": lambda row: f"{row[1] / original:.1%}",
    }
    return table(title, section["spearman"].items(), columns, left=("model",))


def _mlm(section: Mapping[str, Any]) -> Table:
    title = (
        f"masked tokens of reactions, {section['active_fraction']:.1%} active; the gap is "
        f"{section['gap_to_dense']:.2f} of the dense control's"
    )
    rows = [{"model": name, **row} for name, row in section["scores"].items()]
    return table(title, rows, {"model": "model", "loss": "loss:.4f", "accuracy": "accuracy:.4f"})


def _lm(section: Mapping[str, Any]) -> Table:
    columns: dict[str, Column] = {
        "model": "model",
        "active": "active_fraction:.1%",
        "stored": lambda row: "" if row["storage"] is None else f"{row['storage']:.2f}x",
        "perplexity": "perplexity:.2f",
        "of the original": lambda row: f"{row['ratio']:.3f}x",
    }
    empty = {"active_fraction": None, "storage": None}
    rows = [{"model": name, **empty, **row} for name, row in section.items()]
    return table("perplexity on WikiText-2 test", rows, columns)
