"""Random routing: a layer as it was fitted, with hyperplanes drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from fffconvert.tree import FFFLayer


@torch.no_grad()
def randomly_routed(layer: FFFLayer, x: Tensor | None = None, seed: int = 0) -> FFFLayer:
    """A layer with hyperplanes drawn anew, of the same lengths; all else is as in the layer.

    Args:
        layer: The layer; it stays as it is.
        x: [tokens, d_in], what it is given: each hyperplane goes through the median of what comes there.
            Without it only the directions are drawn, and the biases stay.
        seed: Of the draw.
    """
    made = FFFLayer(layer.spec, dtype=torch.float32)
    made.load_state_dict(layer.state_dict())
    rows = made.fff_in_weight
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    rows.copy_(drawn * (rows.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)))
    if x is not None:
        _balance(made, x)
    return made


def _balance(layer: FFFLayer, x: Tensor) -> None:
    """Move each hyperplane into the middle of the tokens that come there."""
    rows = layer.fff_in_weight
    for tree in range(layer.spec.trees):
        node = torch.zeros(len(x), dtype=torch.int64)
        for _ in range(layer.spec.depth + 1):
            s = (x * rows[tree, node]).sum(1)
            order = torch.argsort(s, stable=True)
            order = order[torch.argsort(node[order], stable=True)]
            visited, counts = torch.unique_consecutive(node[order], return_counts=True)
            middle = order[counts.cumsum(0) - 1 - counts // 2]
            layer.fff_in_bias[tree, visited] = -s[middle]
            node = 2 * node + 1 + (s + layer.fff_in_bias[tree, node] > 0).long()
