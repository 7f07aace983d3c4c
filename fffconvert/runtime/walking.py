"""The trees in operators that every runtime has (gather, product, comparison), for exports.

No step depends on the data beyond the rows that it gathers: a graph recorded once serves all inputs. It gives
the same as the op `cmm_inference` and is slower, because every token fetches its rows for itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.weights import Scales, Weights, skip_small


def walk(x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> Tensor:
    """What `ops.cmm_inference` gives, from the same arguments."""
    act, branches = ACTIVATIONS[activation].fn, weights.branches
    trees, nodes, _ = weights.in_weight.shape
    dtype, x = x.dtype, x.float()
    tree = torch.arange(trees, device=x.device)
    node = tree.new_zeros(1, 1) + 0 * x[:, :1].to(torch.int64) + 0 * tree
    y = bias.float()
    for _ in range(weights.depth + 1):
        at = node + nodes * tree
        rows = _gather(weights.in_weight, scales.in_weight, at)
        s = (rows @ x[:, :, None])[:, :, 0] + F.embedding(at, weights.in_bias.reshape(-1, 1))[:, :, 0].float()
        right = (s > 0).to(torch.int64)
        row = 2 * node + right if branches == 2 else node
        y = y + _sum(act(s), _gather(weights.out_weight, scales.out_weight, row + branches * nodes * tree))
        node = 2 * node + 1 + right
    leaf = node - nodes + (nodes + 1) * tree
    if weights.leaf_constant is not None:
        constants = _gather(weights.leaf_constant, scales.leaf_constant, leaf)
        y = y + constants.sum(1)
    if weights.leaf_block is not None:
        y = y + _leaf_blocks(x, leaf, weights, scales, activation)
    return y.to(dtype)


def _leaf_blocks(x: Tensor, leaf: Tensor, weights: Weights, scales: Scales, activation: str) -> Tensor:
    """What the blocks at the leaves add: [tokens, d_out]."""
    block = weights.leaf_block
    assert block is not None, "asked before"
    hidden = ACTIVATIONS[activation].fn(_project(x, leaf, block.up, scales.leaf_in_weight))
    if block.threshold is not None:
        hidden = skip_small(hidden, F.embedding(leaf, block.threshold.flatten(0, 1)))
    if block.gate is not None:
        hidden = hidden * _project(x, leaf, block.gate, scales.leaf_gate_weight)
    rows = _gather(block.out, scales.leaf_out_weight, leaf)
    return (hidden[:, :, None] @ rows)[:, :, 0].sum(1)


def _project(x: Tensor, leaf: Tensor, parameters: tuple[Tensor, Tensor], scale: Tensor | None) -> Tensor:
    """One projection of each token's leaf blocks: [tokens, trees, L]."""
    weight, bias = parameters
    rows = _gather(weight, scale, leaf)
    return (rows @ x[:, None, :, None])[..., 0] + F.embedding(leaf, bias.flatten(0, 1)).float()


def _gather(weight: Tensor, scale: Tensor | None, at: Tensor) -> Tensor:
    """Rows (or leaf blocks of rows) by their number over all trees, float32: [tokens, trees, ..., d]."""
    inner = weight.shape[2:]
    table = weight.reshape(-1, inner.numel())
    rows = F.embedding(at, table).float().view(*at.shape, *inner)
    if scale is None:
        return rows
    parts = scale.reshape(len(table), -1)
    return rows * F.embedding(at, parts).view(*at.shape, *inner[:-1], 1)


def _sum(factors: Tensor, rows: Tensor) -> Tensor:
    """Sum over the trees of factors [tokens, trees] times rows [tokens, trees, d]."""
    return (factors[:, None] @ rows)[:, 0]
