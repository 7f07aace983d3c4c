"""Trees on the residual, grown greedily in closed form from the root down, then refitted as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.fit.joint import refit_outputs
from fffconvert.fit.moments import second_moment
from fffconvert.fit.split import turn
from fffconvert.planning import FFFSpec
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
RESOLUTION = 1e-10
"""Variance below which float32 cannot tell a node's standardised tokens apart."""
POWER_STEPS = 8
PARALLEL_TOKENS = 2048
"""Nodes with fewer tokens are fitted on one thread."""
TINY = 1e-30


@dataclass(frozen=True)
class Tree:
    """One tree over centred inputs, in the layout of `FFFLayer`.

    Attributes:
        rows: [N, features], input rows.
        bias: [N], float64.
        out: [B * N, d_out], output rows.
        constant: [leaves, d_out], the constants of each path, summed; zero without branch outputs.
        order: [tokens], which of the tokens as they were given stands where after growth.
        ends: For each end of growth the leaves that it fills and where its tokens stand.
    """

    rows: Tensor
    bias: Tensor
    out: Tensor
    constant: Tensor
    order: Tensor
    ends: tuple[tuple[slice, slice], ...]


def grow_trees(
    z: Tensor, variance: Tensor, residual: Tensor, weight: Tensor, spec: FFFSpec
) -> Iterator[Tree]:
    """Grow trees one after the other, each on what those before it left.

    Where leaf blocks are to follow, hyperplanes are turned to part what one linear map describes from what
    another does, and the caller subtracts what the leaves explain before it asks for the next tree.

    Args:
        z: [tokens, features], inputs, centred and uncorrelated. Reordered in place.
        variance: [features], the variance of each input.
        residual: [tokens, d_out], centred. Reordered in place, and what the trees explain subtracted.
        weight: [tokens], of mean 1. Reordered in place.
        spec: Shape of the layer.
    """
    sketch = torch.linalg.eigh(second_moment(residual, residual, weight)).eigenvectors[:, -SKETCH:].float()
    for _ in range(spec.trees):
        growth = _Growth(z, variance, residual, weight, sketch, spec)
        if spec.leaf_width:
            yield growth.grow()
            continue
        before = residual.clone() if spec.trees > 1 else residual
        tree = growth.grow()
        out, constant = refit_outputs(z, residual, weight, tree.rows, tree.bias, spec)
        tree = replace(tree, out=tree.out + out, constant=tree.constant + constant)
        if spec.trees == 1:
            yield tree
            continue
        residual.mul_(BOOST).add_(before[growth.order], alpha=1 - BOOST)
        yield replace(tree, out=BOOST * tree.out, constant=BOOST * tree.constant)


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

    def __init__(
        self, z: Tensor, variance: Tensor, residual: Tensor, weight: Tensor, sketch: Tensor, spec: FFFSpec
    ) -> None:
        self.z, self.residual, self.weight, self.sketch, self.spec = z, residual, weight, sketch, spec
        self.variance, self.deviation = variance, (variance + RIDGE).sqrt()
        self.order = torch.arange(len(z))
        self.activation = ACTIVATIONS[spec.activation].fn
        d_out, branches = residual.shape[1], 2 if spec.branch_outputs else 1
        self.rows = torch.zeros(spec.nodes, z.shape[1], dtype=torch.float32)
        self.bias = torch.zeros(spec.nodes, dtype=torch.float64)
        self.out = torch.zeros(branches * spec.nodes, d_out, dtype=torch.float32)
        self.constant = torch.zeros(spec.leaves, d_out, dtype=torch.float32)
        self.ends: list[tuple[slice, slice]] = []

    def grow(self) -> Tree:
        large = [
            _Node(0, slice(0, len(self.z)), None, torch.zeros(self.residual.shape[1], dtype=torch.float32))
        ]
        small: list[_Node] = []
        while large:
            node = large.pop()
            for child in self._split(node) or self._end(node):
                (small if child.tokens.stop - child.tokens.start < PARALLEL_TOKENS else large).append(child)
        with _one_thread():
            while small:
                node = small.pop()
                small += self._split(node) or self._end(node)
        return Tree(self.rows, self.bias, self.out, self.constant, self.order, tuple(self.ends))

    def _end(self, node: _Node) -> list[_Node]:
        """Fill the subtree of a node that has too few tokens, or is the end of a path."""
        first, last, parent = node.index, node.index + 1, (node.index - 1) // 2
        while first < self.spec.nodes:
            # A repeated hyperplane routes all tokens alike, and gradients can still move it.
            self.rows[first:last] = self.rows[max(parent, 0)]
            self.bias[first:last] = self.bias[max(parent, 0)]
            first, last = 2 * first + 1, 2 * last + 1
        leaves = slice(first - self.spec.nodes, last - self.spec.nodes)
        self.constant[leaves] = node.constant
        self.ends.append((leaves, node.tokens))
        return []

    def _split(self, node: _Node) -> list[_Node]:
        """Fit a node, subtract what it explains, and return its children; none if it cannot be split."""
        tokens = node.tokens.stop - node.tokens.start
        if node.index >= self.spec.nodes or tokens < 2 * LEAST_TOKENS:
            return []
        z, residual, weight = self.z[node.tokens], self.residual[node.tokens], self.weight[node.tokens]
        share = (weight / weight.sum())[:, None]
        sketched = residual @ self.sketch
        moment = z.T @ (share * (sketched - (share * sketched).sum(0)))
        if node.moment is not None:
            moment = (tokens * moment + PRIOR_TOKENS * node.moment) / (tokens + PRIOR_TOKENS)
        row = _direction(moment, self.deviation)
        position = z @ row
        centre = position @ share[:, 0]
        position -= centre
        variance = position.square() @ share[:, 0]
        if variance < RESOLUTION:
            return []
        threshold = _threshold(position, residual, share[:, 0])
        if self.spec.leaf_width:
            row, cut = turn(z, self.variance, sketched, weight, row, float(centre + threshold))
            position = z @ row
            centre = position @ share[:, 0]
            position -= centre
            variance, threshold = position.square() @ share[:, 0], cut - centre
        scale = REACH / (position - threshold).abs().max()
        s = scale * (position - threshold)
        self.rows[node.index] = scale * row
        self.bias[node.index] = -scale * (centre.double() + threshold)

        a, right = self.activation(s)[:, None], s > 0
        sides = torch.stack([~right, right], 1).float()
        if self.spec.branch_outputs:
            a_mean = (share * a * sides).sum(0) / (share * sides).sum(0).clamp(min=TINY)
            slope = self.sketch @ (row @ moment) / variance
            design = torch.cat([sides, (a - a_mean) * sides], 1)
            expected = torch.outer((weight * position) @ design, slope)
            fitted = _regress(design, residual, weight, sides, expected)
            self.out[2 * node.index : 2 * node.index + 2] = fitted[2:]
            constants = node.constant + fitted[:2] - a_mean[:, None] * fitted[2:]
        else:
            design = a
            nothing = torch.zeros(1, residual.shape[1], dtype=torch.float32)
            fitted = _regress(design, residual, weight, torch.ones_like(a), nothing)
            self.out[node.index] = fitted[0]
            constants = node.constant.expand(2, -1)
        residual.addmm_(design, fitted, alpha=-1)
        moment -= ((share * (design - (share * design).sum(0))).T @ z).T @ (fitted @ self.sketch)

        left_to_right = torch.cat([(~right).nonzero()[:, 0], right.nonzero()[:, 0]])
        for tensor in (self.z, self.residual, self.weight, self.order):
            tensor[node.tokens] = tensor[node.tokens].index_select(0, left_to_right)
        middle = node.tokens.stop - int(right.sum())
        return [
            _Node(2 * node.index + 1, slice(node.tokens.start, middle), moment, constants[0]),
            _Node(2 * node.index + 2, slice(middle, node.tokens.stop), moment, constants[1]),
        ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Work on small tensors: threads would wait for one another longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    gram /= gram.trace().clamp(min=TINY)
    output = gram[:, gram.diagonal().argmax()]
    for _ in range(POWER_STEPS):
        output = gram @ output
    return F.normalize(moment @ output / deviation, dim=0, eps=TINY)


def _threshold(position: Tensor, residual: Tensor, share: Tensor) -> Tensor:
    """Where the linear fit crosses zero, so that an output row needs no constant; near the mean, which is 0.

    Beneath branch outputs, whose constants took the residual's mean away, that is the mean itself.
    """
    mean, slope = share @ residual, (share * position) @ residual
    variance = share @ position.square()
    crossing = -variance * (mean @ slope) / slope.square().sum().clamp(min=TINY)
    return crossing.clamp(-variance.sqrt(), variance.sqrt())


def _regress(design: Tensor, residual: Tensor, weight: Tensor, sides: Tensor, expected: Tensor) -> Tensor:
    """Regress the residual on orthogonal regressors, shrunk by positive-part James-Stein: [k, d_out].

    Each estimate moves towards its target as far as noise explains the distance between the two.

    Args:
        design: [tokens, k]; regressors of side g are those of number g, g + sides, g + 2 sides, ...
        residual: [tokens, d_out]
        weight: [tokens], the inverse of the tokens' noise, up to a factor.
        sides: [tokens, sides], which tokens are on which side, as 0 and 1.
        expected: [k, d_out], the products of design and residual that the targets would give.

    Reference: Efron and Morris, Stein's estimation rule and its competitors (1973), section 2.
    """
    weighted = weight[:, None] * design
    energy = (weighted * design).sum(0).clamp(min=TINY)[:, None]
    tokens, repeats = sides.sum(0), design.shape[1] // sides.shape[1]
    estimate, target = weighted.T @ residual / energy, expected / energy
    explained = (energy[:, 0] * estimate.square().sum(1)).view(repeats, -1).sum(0)
    total = (weight * torch.linalg.vector_norm(residual, dim=1).square()) @ sides
    variance = (total - explained).clamp(min=0) / (tokens - repeats).clamp(min=1)
    distance = estimate - target
    noise = variance.repeat(repeats)[:, None] / energy
    kept: Tensor = (1 - noise / distance.square().sum(1, keepdim=True).clamp(min=TINY)).clamp(min=0)
    return (target + kept * distance) * (tokens >= LEAST_TOKENS).repeat(repeats)[:, None]
