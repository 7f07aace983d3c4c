"""Routing while training: hard, straight-through or soft decisions, leaks, and terms that shape them.

All of it is `FFFLayer.routing`; without it, and where no gradient is asked for, routing is hard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.runtime import Weights, cmm, reference
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.ops import gradients
from fffconvert.runtime.weights import skip_small


@dataclass
class TrainingRouting:
    """How a layer routes while gradients are asked for.

    Attributes:
        temperature: Of soft decisions, sigmoid(s / temperature); None for hard ones.
        straight_through: Follow hard decisions, but let them have the gradient of soft ones.
        leak: Probability that a decision is turned round.
        load_balance: Weight of the term that pulls each node's mean decision to one half.
        entropy: Weight of the mean entropy of the decisions, in bits.
        terms: The weighted terms of each call since this was emptied.
        tokens: [tokens], true at those that the terms are about, as none of padding is; None for all.
    """

    temperature: float | None = None
    straight_through: bool = False
    leak: float = 0.0
    load_balance: float = 0.0
    entropy: float = 0.0
    terms: list[Tensor] = field(default_factory=list)
    tokens: Tensor | None = None

    def __call__(self, x: Tensor, weights: Weights, activation: str) -> Tensor:
        """Compute the trees.

        Args:
            x: [tokens, d_in]
            weights: The trees.
            activation: A key of `ACTIVATIONS`.

        Returns:
            [tokens, d_out] in the dtype of x.
        """
        if self.temperature is None or self.straight_through:
            y, logits, leaf = self._hard(x, weights, activation)
        else:
            y, logits, leaf = self._soft(x, weights, activation)
        if self.temperature is not None and self.straight_through:
            soft = expectation(x, weights, activation, self.temperature, decisions_only=True)
            y = y + (soft - soft.detach()).to(y.dtype)
        if self.load_balance or self.entropy:
            known = self.tokens is not None and len(self.tokens) == len(logits)
            counted = self.tokens if known else slice(None)
            self.terms.append(self._shape(logits[counted], leaf[counted], weights))
        return y

    def _hard(self, x: Tensor, weights: Weights, activation: str) -> tuple[Tensor, Tensor, Tensor]:
        if not self.leak:
            return cmm(x, weights, activation)
        visited = (len(x), len(weights.in_weight), weights.depth + 1)
        turned = torch.rand(visited, device=x.device, dtype=torch.float32) < self.leak
        y, logits, leaf = _Leaking.apply(x, turned, activation, *weights)  # type: ignore[no-untyped-call]
        return y, logits, leaf

    def _soft(self, x: Tensor, weights: Weights, activation: str) -> tuple[Tensor, Tensor, Tensor]:
        assert self.temperature is not None
        y = expectation(x, weights, activation, self.temperature, leak=self.leak)
        if not (self.load_balance or self.entropy):
            return y.to(x.dtype), x, x
        _, logits, leaf = cmm(x, weights, activation)
        return y.to(x.dtype), logits, leaf

    def _shape(self, logits: Tensor, leaf: Tensor, weights: Weights) -> Tensor:
        """The weighted terms of one call.

        Args:
            logits: [tokens, T, D + 1]
            leaf: [tokens, T]
            weights: The trees.
        """
        scaled = logits / (self.temperature or 1.0)
        p = torch.sigmoid(scaled)
        bits = (F.softplus(scaled) - p * scaled) / torch.log(scaled.new_tensor(2.0))
        trees, nodes = weights.in_bias.shape
        level = torch.arange(weights.depth + 1, device=leaf.device)
        node = (leaf[..., None] >> (weights.depth + 1 - level)) + (1 << level) - 1
        node = (node + nodes * torch.arange(trees, device=leaf.device)[:, None]).flatten()
        visits = p.new_zeros(trees * nodes).index_add_(0, node, torch.ones_like(p).flatten())
        right = p.new_zeros(trees * nodes).index_add_(0, node, p.flatten())
        # A node counts by its share of the visits, so that one that two tokens reach says nothing.
        balance = (visits * (2 * right / visits.clamp(min=1) - 1).square()).sum() / visits.sum().clamp(min=1)
        return self.load_balance * balance + self.entropy * bits.mean()


def expectation(
    x: Tensor,
    weights: Weights,
    activation: str,
    temperature: float | None,
    *,
    leak: float = 0.0,
    decisions_only: bool = False,
) -> Tensor:
    """The mean output over random paths: every node and leaf, weighted by the probability to come there.

    Args:
        x: [tokens, d_in]
        weights: The trees.
        activation: A key of `ACTIVATIONS`.
        temperature: A token goes right with probability sigmoid(s / temperature); None for hard decisions,
            with which this is the layer computed densely under a mask.
        leak: Probability that a decision is turned round, drawn once for each token and node.
        decisions_only: Only the probabilities have a gradient, not the nodes' own outputs.

    Returns:
        [tokens, d_out] in the computing dtype.
    """
    act, branches = ACTIVATIONS[activation], weights.branches
    dtype = weights.compute_dtype(x)
    x = x.to(dtype)
    trees, nodes, d_in = weights.in_weight.shape
    with torch.autocast(x.device.type, enabled=False):  # decisions are not to be rounded
        rows = weights.in_weight.reshape(-1, d_in).to(dtype)
        logits = F.linear(x, rows, weights.in_bias.flatten().to(dtype)).view(-1, trees, nodes)
    values = act.fn(logits)
    values = values.detach() if decisions_only else values
    reach = x.new_ones(len(x), trees, 1)
    factors = []
    for k in range(weights.depth + 1):
        level = slice(2**k - 1, 2 ** (k + 1) - 1)
        s = logits[:, :, level]
        right = (s > 0).to(dtype) if temperature is None else torch.sigmoid(s / temperature)
        if leak:
            right = torch.where(torch.rand_like(right) < leak, 1 - right, right)
        below = torch.stack([reach * (1 - right), reach * right], -1)
        value = values[:, :, level]
        factors.append((value[..., None] * below).flatten(2) if branches == 2 else value * reach)
        reach = below.flatten(2)
    matrices = [weights.out_weight.flatten(0, 1)]
    terms = [torch.cat(factors, 2).flatten(1)]
    if weights.leaf_constant is not None:
        terms.append(reach.flatten(1))
        matrices.append(weights.leaf_constant.flatten(0, 1))
    if weights.leaf_block is not None:
        hidden = _leaf_hidden(x, weights, activation)
        hidden = hidden.detach() if decisions_only else hidden
        terms.append((hidden * reach[..., None]).flatten(1))
        matrices.append(weights.leaf_block.out.flatten(0, 2))
    y = x.new_zeros(len(x), weights.out_weight.shape[2])
    for term, matrix in zip(terms, matrices, strict=True):
        y = y + term @ (matrix.detach() if decisions_only else matrix).to(dtype)
    return y


def _leaf_hidden(x: Tensor, weights: Weights, activation: str) -> Tensor:
    """Every neuron of every leaf: [tokens, T, leaves, L]."""
    block = weights.leaf_block
    assert block is not None
    shape = block.up[1].shape

    def affine(weight: Tensor, bias: Tensor) -> Tensor:
        y = F.linear(x, weight.flatten(0, 2).to(x.dtype), bias.flatten().to(x.dtype))
        return y.view(-1, *shape)

    hidden = skip_small(ACTIVATIONS[activation].fn(affine(*block.up)), block.threshold)
    return hidden if block.gate is None else hidden * affine(*block.gate)


class _Leaking(torch.autograd.Function):
    """`cmm` with some decisions turned round; its backward follows the path that was taken."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, turned: Tensor, activation: str, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute y, the logits and the leaves reached."""
        y, logits, leaf = reference.forward(x, Weights(*tensors), activation, turned=turned)  # type: ignore[arg-type]
        ctx.activation = activation
        ctx.save_for_backward(x, *tensors, logits, leaf)
        ctx.mark_non_differentiable(leaf)
        return y, logits, leaf

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate along the path."""
        x, *tensors, logits, leaf = ctx.saved_tensors
        arguments = (grads[0], grads[1], x, *tensors, logits, leaf, ctx.activation)
        first, *others = gradients(arguments, tensors, ctx.needs_input_grad[3:])
        return first, None, None, *others
