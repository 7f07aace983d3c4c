"""Random routing: a layer as it was fitted, with hyperplanes drawn at random."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fffconvert.tree import FFFLayer


@torch.no_grad()
def randomly_routed(layer: FFFLayer, x: Tensor, seed: int = 0) -> FFFLayer:
    """A layer with hyperplanes drawn anew, of the same lengths, each through the median of what comes there.

    Args:
        layer: The layer; it stays as it is.
        x: [tokens, d_in], what it is given.
        seed: Of the draw.
    """
    made = FFFLayer(layer.spec, dtype=torch.float32)
    made.load_state_dict(layer.state_dict())
    rows = made.fff_in_weight
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(
        rows
    )
    drawn *= rows.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
    rows.copy_(drawn)
    for tree in range(layer.spec.trees):
        node = torch.zeros(len(x), dtype=torch.int64)
        for _ in range(layer.spec.depth + 1):
            s = (x * rows[tree, node]).sum(1)
            order = torch.argsort(s, stable=True)
            order = order[torch.argsort(node[order], stable=True)]
            visited, counts = torch.unique_consecutive(node[order], return_counts=True)
            middle = order[counts.cumsum(0) - 1 - counts // 2]
            made.fff_in_bias[tree, visited] = -s[middle]
            node = 2 * node + 1 + (s + made.fff_in_bias[tree, node] > 0).long()
    return made


@torch.no_grad()
def random_routing(layer: FFFLayer, seed: int = 0) -> FFFLayer:
    """The layer with its hyperplanes' directions drawn anew, of the same lengths; all else is kept."""
    layer = copy.deepcopy(layer)
    rows = layer.fff_in_weight
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(
        rows
    )
    rows.copy_(drawn * rows.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
    return layer


def randomise(model: nn.Module) -> None:
    """Draw the routing of every FFF layer anew, in place."""
    for module in model.modules():
        if isinstance(module, FFFLayer):
            module.load_state_dict(random_routing(module).state_dict())
