"""Trees on the residual, grown greedily in closed form from the root down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fffconvert.fit.moments import second_moment
from fffconvert.plan import FFFSpec
from fffconvert.runtime.activations import ACTIVATIONS

LEAST_TOKENS = 4
"""A branch with fewer gets no output of its own, and a node with fewer than twice as many is not split."""
PRIOR_TOKENS = 200
"""What a node knows from its parent counts as much as this many of its own tokens."""
RIDGE = 0.01
"""Ridge on standardised inputs when a hyperplane is sought."""
SKETCH = 64
"""Principal directions of the residual that take part in the search for hyperplanes."""
REACH = 0.3
"""Largest |s| of a node's tokens: nearly linear in every activation, so that outliers extrapolate tamely."""
BOOST = 0.6
"""Share of a tree's outputs that is kept where several trees are fitted to each other's residuals."""
RESOLUTION = 1e-12
"""Variance below which float32 cannot tell a node's standardised tokens apart."""
POWER_STEPS = 8
TINY = 1e-30


@dataclass(frozen=True)
class Tree:
    """One tree over centred inputs, in the layout of `FFFLayer`.

    Attributes:
        rows: [N, features], input rows.
        bias: [N], float64.
        out: [B * N, d_out], output rows.
        constant: [leaves, d_out], the constants of each path, summed; zero without branch outputs.
    """

    rows: Tensor
    bias: Tensor
    out: Tensor
    constant: Tensor


def grow_trees(z: Tensor, variance: Tensor, residual: Tensor, spec: FFFSpec) -> Iterator[Tree]:
    """Grow trees one after the other, each on what those before it left.

    Args:
        z: [tokens, features], inputs, centred and uncorrelated. Reordered in place.
        variance: [features], the variance of each input.
        residual: [tokens, d_out], centred. Reordered in place, and what the trees explain subtracted.
        spec: Shape of the layer.
    """
    sketch = torch.linalg.eigh(second_moment(residual, residual)).eigenvectors[:, -SKETCH:].float()
    for _ in range(spec.trees):
        growth = _Growth(z, variance, residual, sketch, spec)
        if spec.trees == 1:
            yield growth.grow()
            return
        before = residual.clone()
        tree = growth.grow()
        residual.mul_(BOOST).add_(before[growth.order], alpha=1 - BOOST)
        yield Tree(tree.rows, tree.bias, BOOST * tree.out, BOOST * tree.constant)


@dataclass(frozen=True)
class _Node:
    """A node to be fitted.

    Attributes:
        index: Heap index; N and more for the end of a path.
        tokens: Where its tokens stand.
        moment: [features, sketch], what the parent expects of the moment of inputs and residual.
        constant: [d_out], the constants of the path so far.
    """

    index: int
    tokens: slice
    moment: Tensor | None
    constant: Tensor


class _Growth:
    """The state of one tree's growth. The tokens of a node are contiguous, partitioned as by quicksort."""

    def __init__(self, z: Tensor, variance: Tensor, residual: Tensor, sketch: Tensor, spec: FFFSpec) -> None:
        self.z, self.residual, self.sketch, self.spec = z, residual, sketch, spec
        self.deviation = (variance + RIDGE).sqrt()
        self.order = torch.arange(len(z))
        self.activation = ACTIVATIONS[spec.activation].fn
        d_out, branches = residual.shape[1], 2 if spec.branch_outputs else 1
        self.tree = Tree(
            torch.zeros(spec.nodes, z.shape[1]),
            torch.zeros(spec.nodes, dtype=torch.float64),
            torch.zeros(branches * spec.nodes, d_out),
            torch.zeros(spec.leaves, d_out),
        )

    def grow(self) -> Tree:
        root = _Node(0, slice(0, len(self.z)), None, torch.zeros(self.residual.shape[1]))
        pending = [root]
        while pending:
            node = pending.pop()
            pending += self._split(node) or self._end(node)
        return self.tree

    def _end(self, node: _Node) -> list[_Node]:
        """Fill the subtree of a node that has too few tokens, or is the end of a path."""
        first, last, parent = node.index, node.index + 1, (node.index - 1) // 2
        while first < self.spec.nodes:
            # A repeated hyperplane routes all tokens alike, and gradients can still move it.
            self.tree.rows[first:last] = self.tree.rows[max(parent, 0)]
            self.tree.bias[first:last] = self.tree.bias[max(parent, 0)]
            first, last = 2 * first + 1, 2 * last + 1
        self.tree.constant[first - self.spec.nodes : last - self.spec.nodes] = node.constant
        return []

    def _split(self, node: _Node) -> list[_Node]:
        """Fit a node, subtract what it explains, and return its children; none if it cannot be split."""
        tokens = node.tokens.stop - node.tokens.start
        if node.index >= self.spec.nodes or tokens < 2 * LEAST_TOKENS:
            return []
        residual = self.residual[node.tokens]
        mean = self.z[node.tokens].mean(0)
        x = self.z[node.tokens] - mean
        moment = x.T @ (residual @ self.sketch) / tokens
        if node.moment is not None:
            moment = (tokens * moment + PRIOR_TOKENS * node.moment) / (tokens + PRIOR_TOKENS)
        row = _direction(moment, self.deviation)
        position = x @ row
        spread = position.square().mean()
        if spread < RESOLUTION:
            return []
        threshold = _threshold(position, residual)
        scale = REACH / (position - threshold).abs().max()
        s = scale * (position - threshold)
        self.tree.rows[node.index] = scale * row
        self.tree.bias[node.index] = -scale * (mean.double() @ row.double() + threshold)

        right = s > 0
        if self.spec.branch_outputs:
            slope = self.sketch @ (row @ moment) / (spread * scale)
            design, outputs = _regress_branches(self.activation(s), s, right, residual, slope)
            self.tree.out[2 * node.index : 2 * node.index + 2] = outputs[2:]
            constants = node.constant + outputs[:2]
        else:
            design, outputs = _regress(self.activation(s), residual)
            self.tree.out[node.index] = outputs[0]
            constants = node.constant.expand(2, -1)
        residual.addmm_(design, outputs, alpha=-1)
        moment -= (x.T @ design / tokens) @ (outputs @ self.sketch)

        left_to_right = torch.cat([(~right).nonzero()[:, 0], right.nonzero()[:, 0]])
        for tensor in (self.z, self.residual, self.order):
            tensor[node.tokens] = tensor[node.tokens][left_to_right]
        middle = node.tokens.stop - int(right.sum())
        return [
            _Node(2 * node.index + 1, slice(node.tokens.start, middle), moment, constants[0]),
            _Node(2 * node.index + 2, slice(middle, node.tokens.stop), moment, constants[1]),
        ]


def _direction(moment: Tensor, deviation: Tensor) -> Tensor:
    """The unit direction in which to split and to predict: [features].

    The leading direction of the moment of half-whitened inputs and residual. Whitened ones would give the
    direction that predicts best linearly, but follow noise wherever little is linear or tokens are few.

    Args:
        moment: [features, sketch], of inputs and residual.
        deviation: [features], of the inputs.
    """
    half_whitened = moment * deviation.rsqrt()[:, None]
    gram = half_whitened.T @ half_whitened
    output = gram[:, gram.diagonal().argmax()]
    for _ in range(POWER_STEPS):
        output = gram @ (output / output.norm().clamp(min=TINY))
    row = moment @ output / deviation
    return row / row.norm().clamp(min=TINY)


def _threshold(position: Tensor, residual: Tensor) -> Tensor:
    """Where the linear fit crosses zero, so that a row needs no constant, at most a deviation from the mean.

    Where branches have constants the residual's mean is 0 already, and so is the threshold.
    """
    energy = position.square().sum()
    slope = position @ residual / energy
    crossing = -(residual.mean(0) @ slope) / slope.square().sum().clamp(min=TINY)
    deviation = (energy / len(position)).sqrt()
    return crossing.clamp(-deviation, deviation)


def _regress(a: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """One output row: residual ≈ a row.

    Args:
        a: [tokens]
        residual: [tokens, d_out]

    Returns:
        The regressors, [tokens, 1], and their outputs, [1, d_out].
    """
    energy = a.square().sum().clamp(min=TINY)
    row = a @ residual / energy
    noise = (residual.square().sum() - energy * row.square().sum()).clamp(min=0) / (len(a) - 1)
    return a[:, None], _shrink(row, torch.zeros_like(row), noise / energy)[None]


def _regress_branches(
    a: Tensor, s: Tensor, right: Tensor, residual: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """A constant and an output row for each branch: residual ≈ constant + a row.

    Args:
        a: [tokens]
        s: [tokens]
        right: [tokens], which tokens take the right branch.
        residual: [tokens, d_out]
        slope: [d_out], of the residual on s over both branches; what few tokens say is shrunk towards it.

    Returns:
        The regressors, [tokens, 4]: left, right, a on the left, a on the right; their outputs, [4, d_out].
    """
    outputs = residual.new_zeros(4, residual.shape[1])
    s = s - s.mean()
    for branch, taken in enumerate((~right, right)):
        tokens = int(taken.sum())
        if tokens < LEAST_TOKENS:
            continue
        r, a_mean, s_mean = residual[taken], a[taken].mean(), s[taken].mean()
        mean, deviation = r.mean(0), a[taken] - a_mean
        energy = deviation.square().sum().clamp(min=TINY)
        row = deviation @ r / energy
        explained = tokens * mean.square().sum() + energy * row.square().sum()
        noise = (r.square().sum() - explained).clamp(min=0) / (tokens - 2)
        mean = _shrink(mean, s_mean * slope, noise / tokens)
        row = _shrink(row, (deviation @ s[taken] / energy) * slope, noise / energy)
        outputs[branch], outputs[2 + branch] = mean - a_mean * row, row
    sides = torch.stack([~right, right], 1).to(a.dtype)
    return torch.cat([sides, a[:, None] * sides], 1), outputs


def _shrink(estimate: Tensor, target: Tensor, noise: Tensor) -> Tensor:
    """Positive-part James-Stein: towards the target as far as noise explains the distance.

    Args:
        estimate: [d_out]
        target: [d_out]
        noise: The expected squared error of the estimate, summed over its elements.

    Reference: Efron and Morris, Stein's estimation rule and its competitors (1973), section 2.
    """
    distance = estimate - target
    return target + (1 - noise / distance.square().sum().clamp(min=TINY)).clamp(min=0) * distance
