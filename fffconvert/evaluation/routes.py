"""The routes of tokens through the trees of a model: watched while it runs, or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fffconvert.errors import FFFError
from fffconvert.evaluation.subject import Subject
from fffconvert.runtime import ACTIVATIONS, cmm, reference
from fffconvert.runtime.weights import skip_small
from fffconvert.surgery import layers_of
from fffconvert.tree import FFFLayer

TOKENS = 8192
"""Tokens that are routed at a time."""
ELEMENTS = 1 << 24
"""Largest tensor that is made where all nodes are active."""
Compute = Callable[[FFFLayer, Tensor, Tensor], Tensor]
"""A layer, its input [tokens, d_in] and the leaves [tokens, trees] give the trees' output [tokens, d_out]."""


def require_layers(subject: Subject, task: str) -> dict[str, FFFLayer]:
    """The FFF layers of a model that must have some, by the names of the blocks that they replaced.

    Raises:
        FFFError: It has none.
    """
    layers = {name: placed.layer for name, placed in layers_of(subject.model).items()}
    if not layers:
        raise FFFError(
            f"task {task} looks at routing, and {subject.name} has no FFF layers; convert it first"
        )
    return layers


@torch.no_grad()
def leaves_reached(layer: FFFLayer, x: Tensor) -> Tensor:
    """The leaf of each tree that each token reaches: the layer's input to [tokens, T]."""
    tokens = x.movedim(layer.spec.feature_axis, -1).flatten(0, -2)
    return torch.cat(
        [cmm(part, layer.weights, layer.spec.activation)[2] for part in torch.split(tokens, TOKENS)]
    )


@contextmanager
def watched(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """In the body, tell of each call of an FFF layer which leaves [tokens, trees] its tokens reach."""

    def look(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, FFFLayer)
        see(name, leaves_reached(layer, args[0].detach()))

    handles = [
        placed.layer.register_forward_pre_hook(partial(look, name))
        for name, placed in layers_of(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Visits:
    """How many tokens reached each leaf of each layer of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.counts = {
            name: torch.zeros(placed.layer.spec.trees, placed.layer.spec.leaves, dtype=torch.long)
            for name, placed in layers_of(model).items()
        }

    def __call__(self, name: str, leaf: Tensor) -> None:
        """Count the leaves [tokens, trees] of one call."""
        counts = self.counts[name]
        place = leaf.cpu() + counts.shape[1] * torch.arange(len(counts))
        counts += torch.bincount(place.flatten(), minlength=counts.numel()).view_as(counts)


@contextmanager
def rerouted(model: nn.Module, compute: Callable[[str], Compute]) -> Iterator[None]:
    """In the body, the trees of each FFF layer compute what a function of the layer's name gives for them."""
    layers = {name: placed.layer for name, placed in layers_of(model).items()}
    try:
        for name, layer in layers.items():
            layer.forward = partial(_forward, layer, compute(name))  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


@torch.no_grad()
def _forward(layer: FFFLayer, compute: Compute, x: Tensor) -> Tensor:
    axis = layer.spec.feature_axis
    moved = x.movedim(axis, -1)
    tokens = moved.flatten(0, -2)
    y = compute(layer, tokens, leaves_reached(layer, x)) + layer.fff_bias
    if layer.fff_trunk_in is not None and layer.fff_trunk_out is not None:
        y = y + tokens @ layer.fff_trunk_in.T @ layer.fff_trunk_out
    return y.to(x.dtype).view(*moved.shape[:-1], -1).movedim(-1, axis)


def along(layer: FFFLayer, tokens: Tensor, leaf: Tensor) -> Tensor:
    """The trees' outputs where each token goes to a given leaf."""
    return reference.forward(tokens, layer.weights, layer.spec.activation, leaf=leaf)[0]


def every_node(layer: FFFLayer, tokens: Tensor, leaf: Tensor) -> Tensor:
    """The trees' outputs where every node and leaf is active for every token.

    The nodes of a level count by their mean, and so do the leaves, so that the output keeps the size that a
    path gives it. This is what a tree says on average, without a decision.
    """
    weights, act = layer.weights, ACTIVATIONS[layer.spec.activation].fn
    trees, nodes, leaves = layer.spec.trees, layer.spec.nodes, layer.spec.leaves
    width = max(nodes * weights.branches, leaves * layer.spec.leaf_width)
    share = torch.cat(
        [torch.full((1 << k,), 2.0**-k, dtype=torch.float32) for k in range(layer.spec.depth + 1)]
    ).to(tokens)
    outputs = []
    for x in torch.split(tokens, max(1, ELEMENTS // width)):
        y = torch.zeros(len(x), layer.spec.d_out).to(x)
        for tree in range(trees):
            s = nn.functional.linear(x, weights.in_weight[tree], weights.in_bias[tree])
            active = act(s) * share
            if weights.branches == 2:
                right = s > 0
                active = torch.stack([active * ~right, active * right], 2).flatten(1)
            y = y + active @ weights.out_weight[tree]
            if weights.leaf_constant is not None:
                y = y + weights.leaf_constant[tree].mean(0)
            if (block := weights.leaf_block) is not None:
                up, bias = (part[tree].flatten(0, 1) for part in block.up)
                hidden = act(nn.functional.linear(x, up, bias))
                if block.threshold is not None:
                    hidden = skip_small(hidden, block.threshold[tree].flatten())
                if block.gate is not None:
                    gate, shift = (part[tree].flatten(0, 1) for part in block.gate)
                    hidden = hidden * nn.functional.linear(x, gate, shift)
                y = y + hidden @ block.out[tree].flatten(0, 1) / leaves
        outputs.append(y)
    return torch.cat(outputs)
