"""The leaf blocks: which tokens arrive at which, and their gradients, in plain torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.backend import Passed, without_autocast
from fffconvert.runtime.weights import Weights

Place = tuple[int, int]
"""Tree and leaf."""


def arrivals(leaf: Tensor, leaves: int) -> Iterator[tuple[Place, Tensor]]:
    """The tokens [m] that arrive at each visited (tree, leaf)."""
    trees = leaf.shape[1]
    place = (leaf + leaves * torch.arange(trees, device=leaf.device)).flatten()
    place, order = place.sort(stable=True)
    visited, counts = torch.unique_consecutive(place, return_counts=True)
    groups = torch.split(order // trees, counts.tolist())
    for at, tokens in zip(visited.tolist(), groups, strict=True):
        yield divmod(at, leaves), tokens


@without_autocast
def leaf_backward(grad_y: Tensor, passed: Passed, grad_x: Tensor, grads: Weights | None) -> None:
    """Differentiate the leaf blocks, if there are any: add to `grad_x`, write into those of `grads`.

    The tokens are sorted by leaf once, so that each product reads and writes neighbouring rows.

    Args:
        grad_y: [tokens, d_out], in the computing dtype as x and all that follow.
        passed: The forward pass.
        grad_x: [tokens, d_in]
        grads: Of the shapes of the weights, or None if theirs are not asked for; leaves that no token visits
            keep their zeros.
    """
    x, weights, _, leaf, activation = passed
    block, grad_block = weights.leaf_block, grads and grads.leaf_block
    if block is None:
        return
    act, groups = ACTIVATIONS[activation], list(arrivals(leaf, block.out.shape[1]))
    order = torch.cat([tokens for _, tokens in groups]) if groups else leaf.new_empty(0)
    ends = torch.tensor([len(tokens) for _, tokens in groups]).cumsum(0).tolist()
    at = [(place, slice(end - len(tokens), end)) for (place, tokens), end in zip(groups, ends, strict=True)]
    x, grad_y = x[order], grad_y[order]
    up = _by_leaf(x, *block.up, at)
    grad_hidden = _by_leaf(grad_y, block.out, None, at)
    a = act.fn(up)
    grad_up = act.derivative(up).mul_(grad_hidden)
    if block.threshold is not None:
        own = (block.threshold[place].expand(len(a[part]), -1) for place, part in at)
        thresholds = torch.cat([a.new_empty(0, a.shape[1]), *own]).to(a.dtype)
        skipped = a.abs() <= thresholds
        a, grad_up = a.masked_fill_(skipped, 0), grad_up.masked_fill_(skipped, 0)
    if block.gate is not None:
        gate = _by_leaf(x, *block.gate, at)
        grad_up *= gate
        grad_hidden *= a
        grad_x.index_add_(
            0, order, _affine_backward(grad_hidden, x, block.gate, grad_block and grad_block.gate, at)
        )
        a = a * gate
    grad_x.index_add_(0, order, _affine_backward(grad_up, x, block.up, grad_block and grad_block.up, at))
    if grad_block is not None:
        for place, part in at:
            torch.mm(a[part].T, grad_y[part], out=grad_block.out[place])


def _by_leaf(x: Tensor, weight: Tensor, bias: Tensor | None, at: Sequence[tuple[Place, slice]]) -> Tensor:
    """Multiply each leaf's tokens by its matrix, [T, leaves, m, n]: [tokens, n] to [tokens, m]."""
    y = x.new_empty(len(x), weight.shape[2])
    for place, part in at:
        rows = weight[place].to(x.dtype).T
        if bias is None:
            torch.mm(x[part], rows, out=y[part])
        else:
            torch.addmm(bias[place].to(x.dtype), x[part], rows, out=y[part])
    return y


def _affine_backward(
    grad: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, Tensor],
    grad_parameters: tuple[Tensor, Tensor] | None,
    at: Sequence[tuple[Place, slice]],
) -> Tensor:
    """Write the gradients of each leaf's weight and bias, if asked for; that of `x`: [tokens, d_in]."""
    if grad_parameters is not None:
        for place, part in at:
            torch.mm(grad[part].T, x[part], out=grad_parameters[0][place])
            torch.sum(grad[part], 0, out=grad_parameters[1][place])
    return _by_leaf(grad, parameters[0].transpose(2, 3), None, at)
