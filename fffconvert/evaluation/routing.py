"""Routing statistics: how nodes and leaves are used, which words go where, whether two models agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fffconvert.evaluation.batches import encoder, equal_lengths
from fffconvert.evaluation.language import lines
from fffconvert.evaluation.routes import require_layers, watched
from fffconvert.evaluation.subject import Subject
from fffconvert.evaluation.tasks import Options, read_documents
from fffconvert.fit.length import longest
from fffconvert.forward import evaluation
from fffconvert.records import read
from fffconvert.store import digest, once
from fffconvert.surgery import layers_of
from fffconvert.tree import FFFLayer

LENGTH = 128
LINES = 2000
"""Lines of text unless limited otherwise."""
TREES = 8
"""Trees of a layer that are stated at most."""
LEAVES, WORDS = 8, 12
"""Most visited leaves of each layer's first tree, and words of each, that are named."""


@dataclass(frozen=True)
class Level:
    """How the tokens spread over one level of a tree."""

    level: int
    nodes: int
    visited: int
    entropy: float | None = None


@dataclass(frozen=True)
class LayerRouting:
    """How the tokens spread over one tree of a layer.

    Attributes:
        name: The layer.
        tree: Number of the tree.
        entropy: Of the leaves; 1 is uniform.
        dead_share: Share of the nodes that no token visits.
        levels: From the root down.
        leaf_share: Share of the tokens in each leaf.
    """

    name: str
    tree: int = 0
    entropy: float | None = None
    dead_share: float | None = None
    levels: tuple[Level, ...] = ()
    leaf_share: tuple[float, ...] = ()


@dataclass(frozen=True)
class LeafWords:
    """The words that stand out at one leaf of a layer's first tree, and how often each arrives there."""

    layer: str
    leaf: int
    tokens: tuple[tuple[str, int], ...]
    share: float | None = None


@dataclass(frozen=True)
class PathAgreement:
    """Shares of tokens that reach the same leaf, and of decisions that are the same from the root on.

    As the mean over the layers, and layer by layer.
    """

    same_leaf: float
    same_decisions: float
    name: str = ""
    layers: tuple[PathAgreement, ...] = ()


@dataclass(frozen=True)
class Routing:
    """How a model routes text, and whether others (`agreement`, by role) take the same paths."""

    layers: tuple[LayerRouting, ...]
    leaves: tuple[LeafWords, ...] = ()
    agreement: dict[str, PathAgreement] | None = None
    tokens: int | None = None
    source: str = ""
    limit: int | None = None


def measure_routing(subject: Subject, others: Sequence[Subject], options: Options) -> Routing:
    """How a converted model routes text.

    Args:
        subject: The model.
        others: Models to compare paths with; those without layers of the same shape are left out.
        options: Of the call.

    Raises:
        FFFError: The model has no FFF layers, or the text no tokens.
    """
    layers = require_layers(subject, "routing")
    documents, source = read_documents(options)
    length = longest(subject.model, subject.tokenizer, LENGTH)
    sequences = lines(documents, subject.tokenizer, length, options.limit or LINES)
    comparable = [other for other in others if _shapes(other) == _shapes(subject)]

    def run() -> Routing:
        ids, leaves = reached(subject, sequences)
        agreement = {}
        for other in comparable:
            _, theirs = reached(other, sequences)
            agreement[other.role] = path_agreement(leaves, theirs, layers)
        return Routing(
            tuple(
                statistics(name, tree, leaf[:, tree], layers[name].spec.depth)
                for name, leaf in leaves.items()
                for tree in range(min(TREES, leaf.shape[1]))
            ),
            tuple(
                row
                for name, leaf in leaves.items()
                for row in words(name, ids, leaf[:, 0], subject.tokenizer)
            ),
            agreement or None,
            len(ids),
        )

    key = digest("routing", sequences, subject.key, [(other.role, other.key) for other in comparable])
    found = read(Routing, once("evaluations", key, run), "routing", "program")
    return replace(found, source=source, limit=options.limit)


def _shapes(subject: Subject) -> dict[str, tuple[int, int]]:
    specs = {name: placed.layer.spec for name, placed in layers_of(subject.model).items()}
    return {name: (spec.trees, spec.depth) for name, spec in specs.items()}


def reached(subject: Subject, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a model over text.

    Returns:
        Token ids [tokens], and for each layer the leaves that they reach [tokens, trees]; of a layer that is
        called several times in a run those of its first call.
    """
    ids: list[Tensor] = []
    leaves: dict[str, list[Tensor]] = {name: [] for name in layers_of(subject.model)}

    def see(name: str, leaf: Tensor) -> None:
        if len(leaves[name]) < len(ids):
            leaves[name].append(leaf.cpu())

    device = next(subject.model.parameters()).device
    with evaluation(subject.model), watched(subject.model, see):
        for _, batch in equal_lengths(sequences, "routing"):
            ids.append(batch.flatten())
            batch = batch.to(device)
            encoder(subject.model)(input_ids=batch, attention_mask=torch.ones_like(batch))
    used = {name: torch.cat(parts) for name, parts in leaves.items() if len(parts) == len(ids)}
    return torch.cat(ids), used


def statistics(name: str, tree: int, leaf: Tensor, depth: int) -> LayerRouting:
    """Usage of one tree by tokens that reached the leaves [tokens]."""
    counts = torch.bincount(leaf, minlength=2 << depth)
    levels = []
    for level in range(depth + 1):
        visits = counts.view(1 << level, -1).sum(1)
        levels.append(Level(level, 1 << level, int((visits > 0).sum()), entropy(visits)))
    dead = 1 - sum(level.visited for level in levels) / ((2 << depth) - 1)
    share = tuple(round(share, 6) for share in (counts / counts.sum()).tolist())
    return LayerRouting(name, tree, entropy(counts), dead, tuple(levels), share)


def entropy(counts: Tensor) -> float:
    """Entropy of a distribution as a share of its largest value; 1 for a single place."""
    if len(counts) == 1:
        return 1.0
    share = counts.double() / counts.sum()
    bits = torch.special.entr(share).sum() / torch.log(torch.tensor(float(len(counts)), dtype=torch.float64))
    return float(bits)


def words(name: str, ids: Tensor, leaf: Tensor, tokenizer: Any) -> list[LeafWords]:
    """The most visited leaves of a tree, with the tokens that are most over-represented in each.

    Tokens are ranked by count times the logarithm of how much more frequent they are here than in all text.
    """
    rows = []
    everywhere = torch.bincount(ids).double()
    visits = torch.bincount(leaf)
    for place in visits.argsort(descending=True, stable=True)[:LEAVES].tolist():
        if not visits[place]:
            continue
        here = torch.bincount(ids[leaf == place], minlength=len(everywhere)).double()
        lift = (here / here.sum()) / (everywhere / everywhere.sum()).clamp(min=1e-12)
        gain = torch.where(here > 0, here * lift.clamp(min=1e-12).log(), -torch.inf)
        best = [index for index in gain.argsort(descending=True)[:WORDS].tolist() if here[index] > 0]
        named = tokenizer.convert_ids_to_tokens(best)
        tokens = tuple((word, int(here[index])) for word, index in zip(named, best, strict=True))
        rows.append(LeafWords(name, place, tokens, float(visits[place] / len(ids))))
    return rows


def path_agreement(
    own: Mapping[str, Tensor], others: Mapping[str, Tensor], layers: Mapping[str, FFFLayer]
) -> PathAgreement:
    """Compare the paths of the same tokens, layer by layer, and over all layers."""
    rows = []
    for name, leaf in own.items():
        differs = leaf ^ others[name]
        depth = layers[name].spec.depth + 1
        common = sum((differs >> (depth - 1 - k) == 0).double().mean() for k in range(depth)) / depth
        rows.append(PathAgreement(float((differs == 0).double().mean()), float(common), name))
    mean = (fmean(row.same_leaf for row in rows), fmean(row.same_decisions for row in rows))
    return PathAgreement(*mean, layers=tuple(rows))
