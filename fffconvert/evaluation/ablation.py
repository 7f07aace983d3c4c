"""Is it the routing that works? The same weights with hard routing, and with other routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fffconvert.evaluation.compare import figure, measure_as
from fffconvert.evaluation.routes import (
    Compute,
    Visits,
    along,
    every_node,
    require_layers,
    rerouted,
    watched,
)
from fffconvert.evaluation.subject import Subject
from fffconvert.evaluation.tasks import TASKS, Options, Task
from fffconvert.fit.masking import head
from fffconvert.store import digest, once
from fffconvert.tree import FFFLayer


@dataclass(frozen=True)
class AblationRow:
    """The model with its routing changed: a figure, and its cost against the model's own routes."""

    name: str
    metric: str
    value: float | None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Ablation:
    """The model with its routing changed in several ways."""

    rows: tuple[AblationRow, ...]
    task: str = ""
    source: str = ""
    limit: int | None = None


def quality_task(subject: Subject) -> Task:
    """What a model is judged by where one task must do: sts-b, mlm or perplexity, as its head is."""
    return TASKS[{"none": "sts-b", "masked": "mlm", "causal": "perplexity"}[head(subject.model)]]


def measure_ablation(subject: Subject, options: Options) -> Ablation:
    """What other routes cost, all else being equal.

    - `hard`: the routes that the model takes.
    - `all-nodes`: every node and leaf active for every token, see `routes.every_node`.
    - `random`: each token goes to a leaf drawn uniformly.
    - `shuffled`: each token goes where another token of its batch goes: as many tokens a leaf, other ones.
    - `depth-k`: the first k decisions count; after them a token follows most tokens that came so far (counted
      without labels on the task's own inputs), so `depth-0` is one path for all tokens.

    Args:
        subject: A converted model.
        options: Of the call.

    Returns:
        A row for each way; costs are in the metric's own unit, positive where it is worse than `hard`.

    Raises:
        FFFError: The model has no FFF layers.
    """
    layers = require_layers(subject, "ablation")
    task = quality_task(subject)
    data, source = task.read(options)
    key = digest("ablation", task.name, data, options.limit, subject.key)

    def counted() -> dict[str, Any]:
        visits = Visits(subject.model)
        with watched(subject.model, visits):
            result = measure_as(task, data, subject, options)
        return {**result, "visits": {name: counts.tolist() for name, counts in visits.counts.items()}}

    hard = once("evaluations", digest(key, "hard"), counted)
    visits = {name: torch.tensor(counts) for name, counts in hard["visits"].items()}
    depth = max(layer.spec.depth for layer in layers.values())
    ways: dict[str, Callable[[str], Compute]] = {
        "all-nodes": lambda name: every_node,
        "random": lambda name: _random(),
        "shuffled": lambda name: _shuffled(),
        **{f"depth-{k}": _truncated(visits, k) for k in kept_decisions(depth)},
    }

    def run(compute: Callable[[str], Compute]) -> dict[str, Any]:
        with rerouted(subject.model, compute):
            return measure_as(task, data, subject, options)

    results = {"hard": hard}
    for name, compute in tqdm(ways.items(), desc="ablation", unit="way", disable=None):
        results[name] = once("evaluations", digest(key, name), lambda compute=compute: run(compute))  # type: ignore[misc]
    figures = {name: figure(task.metrics[0], result) for name, result in results.items()}
    sign, own = -1 if task.metrics[0].higher_is_better else 1, figures["hard"]["value"]

    def cost(value: float | None) -> float | None:
        return None if value is None or own is None else sign * (value - own) + 0.0

    rows = tuple(AblationRow(name, **found, cost=cost(found["value"])) for name, found in figures.items())
    return Ablation(rows, task.name, source, options.limit)


def kept_decisions(depth: int) -> list[int]:
    """How many of D + 1 decisions are kept in `depth-k`: none, 1, 2, 4 and so on."""
    return [0, *(1 << power for power in range(depth.bit_length() + 1) if 1 << power <= depth)]


def _random() -> Compute:
    generator = torch.Generator().manual_seed(0)

    def compute(layer: FFFLayer, tokens: Tensor, leaf: Tensor) -> Tensor:
        drawn = torch.randint(layer.spec.leaves, leaf.shape, generator=generator)
        return along(layer, tokens, drawn.to(leaf.device))

    return compute


def _shuffled() -> Compute:
    generator = torch.Generator().manual_seed(0)

    def compute(layer: FFFLayer, tokens: Tensor, leaf: Tensor) -> Tensor:
        order = torch.randperm(len(leaf), generator=generator)
        return along(layer, tokens, leaf[order.to(leaf.device)])

    return compute


def _truncated(visits: dict[str, Tensor], kept: int) -> Callable[[str], Compute]:
    def of(name: str) -> Compute:
        def compute(layer: FFFLayer, tokens: Tensor, leaf: Tensor) -> Tensor:
            below = max(0, layer.spec.depth + 1 - kept)
            usual = visits[name].view(layer.spec.trees, -1, 1 << below).argmax(-1).to(leaf.device)
            start = leaf >> below
            trees = torch.arange(layer.spec.trees, device=leaf.device)
            return along(layer, tokens, (start << below) + usual[trees, start])

        return compute

    return of
