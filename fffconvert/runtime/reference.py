"""Conditional matrix multiplication in plain torch: the specification of the op, on any device.

At every level a token meets one node of each tree, at place `path` of the level's 2^level; its decision
leads to place `2 path + [s > 0]` of the next level. The place after the last level is the leaf, so the path
at any level is the leaf shifted right.

All is computed in float32 at least (float64 if an operand is).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.backend import Operation, Passed, Status, Support, without_autocast
from fffconvert.runtime.leaves import Place, arrivals, leaf_backward
from fffconvert.runtime.weights import LeafBlock, Scales, Weights, skip_small

PART_BYTES = 16 << 20
"""Tokens go in parts, so that no tensor of rows gathered for them is larger (but one token always goes)."""
DENSE_ROWS = 32
"""A level of at most so many rows per tree is a dense product, of which each token keeps its own row's."""


NAME = "reference"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SUPPORT = Support(None, FLOATS, (*FLOATS, torch.int8))


def status() -> Status:
    """As `Backend.status`."""
    return Status(True, "plain torch, on any device")


def why_not(operation: Operation, x: Tensor, weights: Weights, bias: Tensor | None = None) -> str | None:
    """As `Backend.why_not`."""
    return SUPPORT.why_not(operation, x, weights)


@without_autocast
def forward(
    x: Tensor,
    weights: Weights,
    activation: str,
    *,
    turned: Tensor | None = None,
    leaf: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Backend.forward`, and along other paths.

    Args:
        x: [tokens, d_in]
        weights: The trees.
        activation: A key of `ACTIVATIONS`.
        turned: [tokens, T, D + 1], decisions of the path to turn round; none by default.
        leaf: [tokens, T], to send each token to these leaves, whatever its logits say.
    """
    act, branches, levels = ACTIVATIONS[activation], weights.branches, weights.depth + 1
    dtype, x = x.dtype, x.to(weights.compute_dtype(x))
    y = x.new_zeros(len(x), weights.out_weight.shape[2])
    tree = torch.arange(len(weights.in_weight), device=x.device)
    path = tree.new_zeros(len(x), len(tree))
    logits = x.new_empty(*path.shape, levels)
    for k in range(levels):
        nodes = _level(k)
        s = _dot_rows(weights.in_weight, nodes, path, x) + weights.in_bias[:, nodes][tree, path]
        logits[:, :, k] = s
        if leaf is not None:
            below = leaf >> (levels - 1 - k)
        else:
            right = s > 0 if turned is None else (s > 0) ^ turned[:, :, k]
            below = 2 * path + right
        row = below if branches == 2 else path
        _add_rows(y, weights.out_weight, _level(k, branches), row, act.fn(s))
        path = below
    if weights.leaf_constant is not None:
        _add_rows(y, weights.leaf_constant, slice(0, 1 << levels), path, x.new_ones(path.shape))
    if (block := weights.leaf_block) is not None:
        for at, tokens in arrivals(path, block.out.shape[1]):
            up, gate = _leaf_hidden(x[tokens], block, at)
            a = skip_small(act.fn(up), None if block.threshold is None else block.threshold[at])
            y.index_add_(0, tokens, (a * gate) @ block.out[at].to(x.dtype))
    return y.to(dtype), logits, path


@without_autocast
def inference(x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> Tensor:
    """As `Backend.inference`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    scaled = {
        name: getattr(weights, name).to(dtype) * scale[..., None]
        for name, scale in scales._asdict().items()
        if scale is not None
    }
    weights = weights._replace(**scaled)
    y, _, _ = forward(x.to(weights.compute_dtype(x)), weights, activation)
    return (y + bias).to(x.dtype)


def prepare(bias: Tensor, weights: Weights, scales: Scales, activation: str) -> None:
    """As `Backend.prepare`: there is no other form."""


@without_autocast
def backward(grad_y: Tensor, grad_logits: Tensor, passed: Passed, rows: bool = True) -> list[Tensor]:
    """As `Backend.backward`."""
    x, weights, logits, leaf, activation = passed
    act, depth, branches = ACTIVATIONS[activation], weights.depth, weights.branches
    dtype, x = x.dtype, x.to(weights.compute_dtype(x))
    grad_y = grad_y.to(x.dtype)
    grad_x = x.new_zeros(x.shape)
    grads = Weights._make(None if w is None else x.new_zeros(w.shape) for w in weights) if rows else None
    for k in range(depth + 1):
        nodes, ends = _level(k), _level(k, branches)
        path = leaf >> (depth + 1 - k)
        row = leaf >> (depth - k) if branches == 2 else path
        s = logits[:, :, k]
        grad_a = _dot_rows(weights.out_weight, ends, row, grad_y)
        grad_s = grad_logits[:, :, k] + act.derivative(s) * grad_a
        _add_rows(grad_x, weights.in_weight, nodes, path, grad_s)
        if grads is None:
            continue
        _add_to_rows(grads.in_weight, nodes, path, grad_s, x)
        _add_to_rows(grads.in_bias[:, :, None], nodes, path, grad_s, x.new_ones(len(x), 1))
        _add_to_rows(grads.out_weight, ends, row, act.fn(s), grad_y)
    if grads is not None and grads.leaf_constant is not None:
        _add_to_rows(grads.leaf_constant, slice(0, 2 << depth), leaf, x.new_ones(leaf.shape), grad_y)
    leaf_backward(grad_y, passed._replace(x=x), grad_x, grads)
    given = (grad for grad in grads or () if grad is not None)
    return [grad_x.to(dtype), *(grad.to(weights.in_weight.dtype) for grad in given)]


def _level(k: int, rows_per_node: int = 1) -> slice:
    """The rows of the nodes of level k."""
    return slice(rows_per_node * (2**k - 1), rows_per_node * (2 ** (k + 1) - 1))


def _parts(x: Tensor, numbers: int) -> Iterator[slice]:
    """Split the tokens of `x` so that so many numbers for each of them stay within `PART_BYTES`."""
    size = max(1, PART_BYTES // (numbers * x.element_size()))
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def _dot_rows(weight: Tensor, level: slice, index: Tensor, x: Tensor) -> Tensor:
    """Multiply each token with one row of each tree.

    Args:
        weight: [trees, all rows, d]
        level: The rows that `index` counts from.
        index: [tokens, trees]
        x: [tokens, d]

    Returns:
        [tokens, trees]
    """
    trees, _, d = weight.shape
    count = level.stop - level.start
    products = x.new_empty(index.shape)
    if count <= DENSE_ROWS:
        dense = weight[:, level].reshape(-1, d).to(x.dtype).T
        for part in _parts(x, trees * count):
            every = (x[part] @ dense).view(-1, trees, count)
            products[part] = every.gather(2, index[part, :, None])[:, :, 0]
    else:
        for part in _parts(x, trees * d):
            products[part] = torch.linalg.vecdot(_rows(weight, level, index[part], x.dtype), x[part, None])
    return products


def _add_rows(out: Tensor, weight: Tensor, level: slice, index: Tensor, factor: Tensor) -> None:
    """Add to each token of `out` one row of each tree times its factor.

    Args:
        out: [tokens, d]
        weight: [trees, all rows, d]
        level: The rows that `index` counts from.
        index: [tokens, trees]
        factor: [tokens, trees]
    """
    trees, _, d = weight.shape
    count = level.stop - level.start
    if count <= DENSE_ROWS:
        dense = weight[:, level].reshape(-1, d).to(out.dtype)
        for part in _parts(out, trees * count):
            out[part] += _spread(index[part], factor[part], count) @ dense
    else:
        for part in _parts(out, trees * d):
            out[part] += (factor[part, None] @ _rows(weight, level, index[part], out.dtype))[:, 0]


def _rows(weight: Tensor, level: slice, index: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows at `index` of each tree: [tokens, trees, d]."""
    trees, total, d = weight.shape
    flat = index + torch.arange(level.start, trees * total, total, device=index.device)
    # Whole rows of one matrix are copied many times faster than elements picked by several indices.
    return weight.reshape(-1, d).index_select(0, flat.flatten()).view(*index.shape, d).to(dtype)


def _add_to_rows(grad: Tensor, level: slice, index: Tensor, factor: Tensor, x: Tensor) -> None:
    """Add each token times its factor to one row of each tree.

    Args:
        grad: [trees, all rows, d], contiguous.
        level: The rows that `index` counts from.
        index: [tokens, trees]
        factor: [tokens, trees]
        x: [tokens, d]
    """
    trees, total, d = grad.shape
    count = level.stop - level.start
    if count <= DENSE_ROWS:
        for part in _parts(x, trees * count):
            grad[:, level] += (_spread(index[part], factor[part], count).T @ x[part]).view(trees, count, d)
    else:
        flat_index = index + torch.arange(level.start, trees * total, total, device=x.device)
        for part in _parts(x, trees * d):
            terms = factor[part, :, None] * x[part, None]
            grad.view(-1, d).index_add_(0, flat_index[part].flatten(), terms.view(-1, d))


def _spread(index: Tensor, factor: Tensor, count: int) -> Tensor:
    """Write each factor at its index among zeros: [tokens, trees * count]."""
    zeros = factor.new_zeros(*index.shape, count)
    return zeros.scatter_(2, index[:, :, None], factor[:, :, None]).flatten(1)


def _leaf_hidden(x: Tensor, block: LeafBlock, at: Place) -> tuple[Tensor, Tensor]:
    """The neurons of one leaf before the activation, and the gate (ones if there is none): [m, L] each."""
    up = _affine(x, block.up, at)
    return up, torch.ones_like(up) if block.gate is None else _affine(x, block.gate, at)


def _affine(x: Tensor, parameters: tuple[Tensor, Tensor], at: Place) -> Tensor:
    weight, bias = parameters
    return F.linear(x, weight[at].to(x.dtype), bias[at].to(x.dtype))
