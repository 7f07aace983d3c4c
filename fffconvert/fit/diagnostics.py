"""What a fitted layer does with tokens that it was not fitted on: how well it fits, and how it routes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fffconvert.fit.layer import r2
from fffconvert.fit.moments import token_weights
from fffconvert.runtime import ACTIVATIONS, cmm
from fffconvert.runtime.leaves import arrivals
from fffconvert.tree import FFFLayer

CHUNK = 8192
QUANTILES = (0.05, 0.5, 0.95)
TINY = 1e-30


@dataclass(frozen=True)
class Diagnostics:
    """Fit and routing of one layer on held-out tokens. Of several trees, means over the trees.

    Attributes:
        r2_heldout: Share of the variance of the block's output that the layer explains.
        token_r2_heldout: The same with all tokens counting alike.
        routing_entropy: Entropy of the ends of paths, as a share of its largest value; 1 is uniform.
        dead_node_share: Share of nodes that no token visits. With fewer tokens than nodes some must be dead.
        path_balance: Tokens of the most visited end of a path over the mean of all ends; 1 is uniform.
        skipped_share: Share of the leaf blocks' neurons that thresholds spare the tokens; what the
            specification asks for is true of the tokens that the layer was fitted on.
        margins: |s| over its mean at the visited nodes of its level, at the quantiles 5 %, 50 % and 95 %:
            the tokens with the smallest are the ones that rounding can send the other way.
    """

    r2_heldout: float
    token_r2_heldout: float
    routing_entropy: float
    dead_node_share: float
    path_balance: float
    skipped_share: float
    margins: tuple[float, float, float]


@torch.no_grad()
def diagnose(layer: FFFLayer, x: Tensor, y: Tensor) -> Diagnostics:
    """Measure a layer on tokens held out.

    Args:
        layer: The layer, with the features on the last axis.
        x: [tokens, d_in], at least one token.
        y: [tokens, d_out], what the block made of them.
    """
    spec = layer.spec
    y_hat = outputs(layer, x)
    routed = [cmm(part, layer.weights, spec.activation)[1:] for part in torch.split(x, CHUNK)]
    logits, leaf = torch.cat([part[0] for part in routed]), torch.cat([part[1] for part in routed])
    entropy, dead, balance = 0.0, 0.0, 0.0
    for ends in leaf.unbind(1):
        visits = torch.bincount(ends, minlength=spec.leaves).double()
        share = visits / visits.sum()
        entropy += float(-(share * share.clamp(min=TINY).log2()).sum()) / (spec.depth + 1)
        balance += float(visits.max() / visits.mean())
        dead += 1 - _visited(visits) / spec.nodes
    margin = logits.abs() / logits.abs().mean((0, 1), keepdim=True).clamp(min=TINY)
    sample = margin.flatten()[:: -(-margin.numel() // 1_000_000)]
    low, middle, high = sample.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return Diagnostics(
        r2_heldout=r2(y, y_hat),
        token_r2_heldout=r2(y, y_hat, token_weights(y)),
        routing_entropy=entropy / spec.trees,
        dead_node_share=dead / spec.trees,
        path_balance=balance / spec.trees,
        skipped_share=skipped_share(layer, x, leaf),
        margins=(low, middle, high),
    )


@torch.no_grad()
def outputs(module: nn.Module, x: Tensor) -> Tensor:
    """What a module makes of many tokens in eval mode, some at a time: [tokens, d_in] to [tokens, d_out]."""
    module.eval()
    return torch.cat([module(part) for part in torch.split(x, CHUNK)])


@torch.no_grad()
def skipped_share(layer: FFFLayer, x: Tensor, leaf: Tensor) -> float:
    """The share of neurons that tokens [tokens, d_in] skip in the leaves [tokens, T] that they reach."""
    block, act = layer.weights.leaf_block, ACTIVATIONS[layer.spec.activation].fn
    if block is None or block.threshold is None:
        return 0.0
    skipped = 0
    for at, tokens in arrivals(leaf, layer.spec.leaves):
        for part in torch.split(tokens, CHUNK):
            activations = act(F.linear(x[part], block.up[0][at], block.up[1][at]))
            skipped += int((activations.abs() <= block.threshold[at]).sum())
    return skipped / (leaf.numel() * layer.spec.leaf_width)


def _visited(ends: Tensor) -> int:
    """Nodes of a tree that have a visited end below them."""
    count, visits = 0, ends
    while len(visits) > 1:
        visits = visits.view(-1, 2).sum(1)
        count += int((visits > 0).sum())
    return count
