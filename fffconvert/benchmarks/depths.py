"""Time for each token against the depth of a tree, beside its number of nodes; and the picture of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fffconvert.benchmarks import check
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.benchmarks.timing import Contestant, measure, threads_restored
from fffconvert.benchmarks.workload import PAPER_SHAPE, random_workload
from fffconvert.deployment import deploy
from fffconvert.figures import figure_class
from fffconvert.planning import FFFSpec

DEPTHS = range(4, 16)
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by all
_MARKERS = "osD^vP"


def sweep(settings: LayerBench, depths: Sequence[int] = DEPTHS) -> list[dict[str, Any]]:
    """Measure single trees of random weights, on the first of the backends, row types and thread counts.

    Each depth is measured on its own: its weights should not push those of another out of the cache.

    Returns:
        `depth`, `nodes`, `backend`, `dtype`, `threads`, `tokens`, the times of a call, `us_per_token`.

    Raises:
        WrongOutputError: Outputs are not those of the layer.
    """
    with threads_restored():
        torch.set_num_threads(settings.threads[0])
        return [row for depth in tqdm(depths, desc="depths", disable=None) for row in _depth(settings, depth)]


def _depth(settings: LayerBench, depth: int) -> Iterator[dict[str, Any]]:
    (backend, dtype), d = next(settings.variants), (settings.shape or PAPER_SHAPE)[0]
    workload = random_workload(FFFSpec(d, d, depth), 1, settings.seed)
    layer = deploy(
        random_workload(FFFSpec(d, d, depth), 1, settings.seed).layer, backend=backend, dtype=dtype
    )
    for tokens in settings.plot_sizes:
        batches = workload.batches(tokens, settings.seed)
        some = torch.cat(batches[:64])[:64] if tokens < 64 else batches[0]
        with torch.inference_mode():
            truth = check.truth(workload.layer, dtype, some)
            error = check.largest_error(layer(some), truth, f"backend {backend}, depth {depth}")
            contestant = {"layer": Contestant(layer, batches)}
            timing = measure(contestant, seconds=settings.seconds, repeats=settings.repeats)["layer"]
        yield {
            "depth": depth,
            "nodes": workload.tree_size,
            "backend": backend,
            "dtype": dtype,
            "threads": settings.threads[0],
            "tokens": tokens,
            **vars(timing),
            "us_per_token": timing.median_us / tokens,
            "max_error": error,
        }


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of `sweep`; the file is written atomically.

    Both axes have equal decades, so that slopes compare.
    """
    figure = figure_class()(figsize=(7.5, 5), layout="constrained")
    times = figure.subplots()
    nodes = times.twinx()
    counts = sorted({row["tokens"] for row in rows})
    for at, tokens in enumerate(counts):
        curve = [row for row in rows if row["tokens"] == tokens]
        times.plot(
            [row["depth"] for row in curve],
            [row["us_per_token"] for row in curve],
            color=_COLOURS[at % len(_COLOURS)],
            marker=_MARKERS[at % len(_MARKERS)],
            label=f"{tokens:,} token{'s' if tokens > 1 else ''} a call",
        )
    first = [row for row in rows if row["tokens"] == counts[0]]
    numbers = [row["nodes"] for row in first]
    nodes.plot([row["depth"] for row in first], numbers, color="black", linestyle="--", label="nodes")
    fastest = min(row["us_per_token"] for row in rows)
    decades = max(max(numbers) / min(numbers), max(row["us_per_token"] for row in rows) / fastest) * 2
    for axes, low, label in (
        (times, fastest / 1.4, "median time for each token (µs)"),
        (nodes, min(numbers) / 1.4, "nodes of the tree (dashed)"),
    ):
        axes.set_yscale("log")
        axes.set_ylim(low, low * decades)
        axes.set_ylabel(label)
    one = rows[0]
    threads = f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}"
    times.set_title(f"{one['backend']}, {one['dtype']} rows, {threads}: time grows as the depth")
    times.set_xlabel("depth")
    times.set_xticks(sorted({row["depth"] for row in rows}))
    times.grid(alpha=0.3)
    handles = [*times.get_legend_handles_labels()[0], *nodes.get_legend_handles_labels()[0]]
    times.legend(handles=handles, loc="upper left")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
