"""Leaf blocks: for the tokens of one region, the original neurons and linear directions that matter there.

Most of what a block does in a region is linear, so a leaf spends some of its width on linear directions
(neurons kept where their activation is straight) and the rest on original neurons, chosen for what no linear
map explains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.fit.moments import Principal
from fffconvert.fit.neurons import Neurons
from fffconvert.runtime.activations import ACTIVATIONS

PRIOR_TOKENS = 100
"""Ridge of each feature, in tokens in which it varies as it does over all tokens."""
CANDIDATES = 4
"""Neurons that take part in the selection, per neuron of a leaf: those of most effect on its tokens."""
LEAF_TOKENS = 1 << 15
"""A leaf is fitted on at most so many of its tokens."""
RANKING_TOKENS = 4096
"""Tokens on which candidates are ranked."""
SPREAD_TOKENS = 1 << 16
"""Tokens on which the spread of each neuron over all regions is measured."""
CHUNK = 8192
REACH = 0.3
"""How far a linear direction's neuron moves from its point of rest on the tokens of its leaf."""
MOST_SKIPPED = 0.95
"""Share that is skipped at most of the original neurons; linear directions, which are not, make way."""
COLLINEAR = 1e-4
"""Share of a neuron's variance that must be left for it to be chosen."""
FLOOR = 1e-6
TINY = 1e-30


@dataclass(frozen=True)
class Leaf:
    """A leaf block over the original inputs, in the layout of `FFFLayer`.

    Attributes:
        neurons: Its L neurons, chosen ones first.
        constant: [d_out]
        chosen: Indices of the original neurons among them, [L - linear].
    """

    neurons: Neurons
    constant: Tensor
    chosen: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output, constant included: [tokens, d_in] to [tokens, d_out]."""
        parts = torch.split(x, CHUNK)
        return torch.cat([torch.addmm(self.constant, self.neurons(part), self.neurons.out) for part in parts])


class LeafFit:
    """Fits the leaves of one layer.

    Args:
        neurons: All neurons of the original block.
        width: Neurons of a leaf, L.
        x: [tokens, d_in], all tokens.
        weight: [tokens]
        principal: The coordinates of x in which leaves are fitted.
        sparsity: Share of a leaf's neurons that its tokens skip.
    """

    def __init__(
        self,
        neurons: Neurons,
        width: int,
        x: Tensor,
        weight: Tensor,
        principal: Principal,
        sparsity: float = 0.0,
    ) -> None:
        self.neurons, self.width, self.principal, self.sparsity = neurons, width, principal, sparsity
        self.scale = (principal.variance + FLOOR * principal.variance.max()).clamp(min=TINY).rsqrt()
        x, weight = _sample(SPREAD_TOKENS, x, weight)
        values, share = neurons(x), weight / weight.sum()
        spread = share @ (values - share @ values).square()
        self.prior = torch.cat([spread, torch.ones_like(self.scale)]).double()

    @property
    def entire(self) -> bool:
        """Whether a leaf holds all of the block's neurons."""
        return self.width >= len(self.neurons)

    def fit(self, x: Tensor, z: Tensor, residual: Tensor, weight: Tensor, *, whole: bool = True) -> Leaf:
        """Fit one leaf to its tokens.

        Args:
            x: [tokens, d_in], at least one token.
            z: [tokens, features], the same inputs, uncorrelated over all tokens.
            residual: [tokens, d_out], what trunk and path left.
            weight: [tokens]
            whole: Whether the residual is all that the block does. Few tokens then leave a neuron's output
                row near the original one; else, where something was explained before, near zero.
        """
        x, z, residual, weight = _sample(LEAF_TOKENS, x, z, residual, weight)
        if whole and self.entire:
            return self._entire(x, residual, weight)
        z = z * self.scale
        candidates = self._candidates(x, residual, weight)
        own, taken = self.neurons[candidates], len(candidates)
        moments = self._ridge_moments(candidates, own, x, z, residual, weight, whole)
        least = math.ceil(self.sparsity * self.width / MOST_SKIPPED)
        chosen, directions = _choose(moments.second, moments.cross, taken, self.width, least)
        picked = candidates[chosen]
        own = own[chosen]
        if self.sparsity and len(picked):
            own = self._sparse(own, x, weight)
            moments = self._ridge_moments(picked, own, x, z, residual, weight, whole)
            chosen, taken = torch.arange(len(picked)), len(picked)
        # What the leaf's neurons are made of: columns over those of the moments and z.
        made = torch.zeros(len(moments.second), len(chosen) + directions.shape[1], dtype=torch.float64)
        made[chosen, torch.arange(len(chosen))] = 1
        made[taken:, len(chosen) :] = directions
        gram = made.T @ moments.second @ made
        gram.diagonal().add_(1e-9 * gram.diagonal() + TINY)
        out = torch.linalg.solve(gram, made.T @ moments.cross)
        constant = moments.mean_residual - (moments.mean @ made) @ out
        linear, slope, rest = self._linear(directions, z)
        out[len(chosen) :] /= slope[:, None]
        constant -= rest @ out[len(chosen) :]
        made_of = _joined(own, linear, out.float())
        return Leaf(_padded(made_of, self.width), constant.float(), picked)

    def _entire(self, x: Tensor, residual: Tensor, weight: Tensor) -> Leaf:
        """The block itself, output rows as they are; the mean of what is skipped is made up for."""
        own = self._sparse(self.neurons, x, weight) if self.sparsity else self.neurons
        left = residual - torch.cat([own(part) @ own.out for part in torch.split(x, CHUNK)])
        constant = weight @ left / weight.sum()
        return Leaf(_padded(own, self.width), constant, torch.arange(len(own)))

    def _sparse(self, neurons: Neurons, x: Tensor, weight: Tensor) -> Neurons:
        """Thresholds for some of a leaf's neurons, such that the share of all of them is skipped."""
        x, weight = _sample(RANKING_TOKENS, x, weight)
        return neurons.sparse(x, weight, min(1.0, self.sparsity * self.width / len(neurons)))

    def _ridge_moments(
        self,
        at: Tensor,
        neurons: Neurons,
        x: Tensor,
        z: Tensor,
        residual: Tensor,
        weight: Tensor,
        whole: bool,
    ) -> _Moments:
        """Moments of some of the neurons, those at these indices, of z and the residual; with the ridge."""
        moments = _moments(neurons, x, z, residual, weight)
        prior = torch.cat([self.prior[at], self.prior[len(self.neurons) :]])
        ridge = PRIOR_TOKENS / len(x) * prior
        moments.second.diagonal().add_(ridge + TINY)
        if whole:
            moments.cross[: len(at)] += ridge[: len(at), None] * self.neurons.out[at]
        return moments

    def _candidates(self, x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        """The neurons whose values say most about the residual, one by one: indices, ascending."""
        count = min(len(self.neurons), CANDIDATES * self.width)
        if count == len(self.neurons):
            return torch.arange(count)
        x, residual, weight = _sample(RANKING_TOKENS, x, residual, weight)
        share = weight / weight.sum()
        values = self.neurons(x)
        values -= share @ values
        cross = (values * share[:, None]).T @ residual
        variance = share @ values.square() + PRIOR_TOKENS / len(x) * self.prior[: len(self.neurons)].float()
        effect = cross.square().sum(1) / variance.clamp(min=TINY)
        return effect.topk(count).indices.sort().values

    def _linear(self, directions: Tensor, z: Tensor) -> tuple[Neurons, Tensor, Tensor]:
        """Neurons that are linear on the leaf's tokens.

        Returns:
            Those, without output rows, and slope and constant of each as a function of its direction,
            [linear], float64.
        """
        fn = ACTIVATIONS[self.neurons.activation].fn
        reach = (z @ directions.float()).abs().amax(0).double().clamp(min=TINY)
        rows = self.principal.rows((directions * self.scale.double()[:, None] / reach).T)
        shift = -(rows @ self.principal.mean)
        if self.neurons.gated:  # a constant activation times the direction
            rows = torch.stack([torch.zeros_like(rows), rows])
            bias = torch.stack([torch.ones_like(shift), shift])
            slope, rest = fn(torch.ones_like(reach)) / reach, torch.zeros_like(reach)
        else:
            point = straightest(self.neurons.activation)
            low, middle, high = fn(point + REACH * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
            rows, bias = REACH * rows[None], (point + REACH * shift)[None]
            slope, rest = (high - low) / 2 / reach, middle.expand_as(reach)
        nothing = torch.zeros(rows.shape[1], 0, dtype=torch.float32)
        return Neurons(rows.float(), bias.float(), nothing, self.neurons.activation), slope, rest


def choose_neurons(
    x: Tensor, y: Tensor, neurons: Neurons, width: int, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One set of original neurons for all tokens, chosen together and refitted by least squares.

    Args:
        x: [tokens, d_in]
        y: [tokens, d_out]
        neurons: Those of the block.
        width: How many to choose.
        weight: [tokens]

    Returns:
        Their indices, output rows [width, d_out], and constant [d_out].
    """
    x, y, weight = _sample(SPREAD_TOKENS, x, y, weight)
    moments = _moments(neurons, x, x[:, :0], y, weight)
    chosen, _ = _greedy(moments.second.float(), moments.cross.float(), moments.second.diagonal(), width)
    gram = moments.second[chosen][:, chosen]
    out = torch.linalg.solve(gram + torch.diag(1e-6 * gram.diagonal() + TINY), moments.cross[chosen])
    constant = moments.mean_residual - moments.mean[chosen] @ out
    return chosen, out.float(), constant.float()


def _sample(tokens: int, *tensors: Tensor) -> list[Tensor]:
    """At most so many rows of each tensor, evenly spaced."""
    return [tensor[:: -(-len(tensor) // tokens)] for tensor in tensors]


def straightest(activation: str) -> float:
    """The point around which an activation is closest to a line; the smallest if there are several."""
    fn = ACTIVATIONS[activation].fn
    points = torch.linspace(-4, 4, 321, dtype=torch.float64)
    points = points[points.abs().argsort(stable=True)]
    offsets = REACH * torch.linspace(-1, 1, 9, dtype=torch.float64)
    values = fn(points[:, None] + offsets)
    slope = (values[:, -1] - values[:, 0]) / (2 * REACH)
    bend = (values - values[:, 4:5] - slope[:, None] * offsets).abs().amax(1)
    steep = slope.abs() > slope.abs().max() / 2
    return float(points[torch.where(steep, bend / slope.abs(), torch.inf).argmin()])


@dataclass(frozen=True)
class _Moments:
    """Centred moments of the features (candidates, then z) and the residual, float64.

    Attributes:
        mean: [features]
        mean_residual: [d_out]
        second: [features, features]
        cross: [features, d_out]
    """

    mean: Tensor
    mean_residual: Tensor
    second: Tensor
    cross: Tensor


def _moments(neurons: Neurons, x: Tensor, z: Tensor, residual: Tensor, weight: Tensor) -> _Moments:
    features, d_out = len(neurons) + z.shape[1], residual.shape[1]
    second = torch.zeros(features, features, dtype=torch.float64)
    cross = torch.zeros(features, d_out, dtype=torch.float64)
    mean, mean_residual = torch.zeros(features, dtype=torch.float64), torch.zeros(d_out, dtype=torch.float64)
    share = weight / weight.sum()
    # Moments about a point near the mean lose nothing to cancellation.
    shift = torch.cat([neurons(x[:CHUNK]), z[:CHUNK]], 1).mean(0)
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        values = torch.cat([neurons(x[part]), z[part]], 1) - shift
        weighted = values * share[part, None]
        second += weighted.T @ values
        cross += weighted.T @ residual[part]
        mean += weighted.sum(0)
        mean_residual += share[part] @ residual[part]
    second -= torch.outer(mean, mean)
    cross -= torch.outer(mean, mean_residual)
    return _Moments(mean + shift, mean_residual, second, cross)


def _choose(second: Tensor, cross: Tensor, count: int, width: int, least: int) -> tuple[Tensor, Tensor]:
    """Choose neurons and linear directions together.

    The neurons are ranked by what they explain beyond every linear map, the directions by what they explain
    alone; the width is shared out where the sum of both is largest.

    Args:
        second: [count + features, count + features], of candidates and z, ridge included.
        cross: [count + features, d_out]
        count: Number of candidates.
        width: Neurons and directions in all.
        least: Neurons at least, as far as there are candidates.

    Returns:
        Indices of the chosen neurons, and directions, [features, linear].
    """
    linear = slice(count, None)
    towards = torch.cat([second[linear, :count], cross[linear]], 1)
    solved = torch.linalg.solve(second[linear, linear], towards)
    beyond = torch.cat([second[:count, :count], cross[:count]], 1) - towards[:, :count].T @ solved
    order, gains = _greedy(
        beyond[:, :count].float(), beyond[:, count:].float(), second.diagonal()[:count], width
    )
    explained = towards[:, count:].T @ solved[:, count:]
    spectrum = torch.linalg.eigvalsh(explained).flip(0).clamp(min=0)[: len(solved)]
    by_neurons = torch.cat([torch.zeros(1, dtype=torch.float64), gains.double().cumsum(0)])
    by_directions = torch.cat([torch.zeros(1, dtype=torch.float64), spectrum.cumsum(0)])
    linear_counts = torch.arange(min(width - least, len(spectrum)) + 1)
    neuron_counts = (width - linear_counts).clamp(max=len(order))
    directions = int((by_directions[linear_counts] + by_neurons[neuron_counts]).argmax())
    chosen = order[: min(width - directions, len(order))]
    return chosen, _directions(second, cross, count, chosen, directions)


def _greedy(second: Tensor, cross: Tensor, scale: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Orthogonal matching pursuit on moments: each neuron is the one that explains most beside those before.

    Args:
        second: [n, n], positive semidefinite.
        cross: [n, d_out]
        scale: [n], variances against which what is left of a neuron is judged.
        width: How many to take at most.

    Returns:
        Indices and gains in order of choice, both [k].

    Reference: Pati, Rezaiifar and Krishnaprasad, Orthogonal matching pursuit (1993).
    """
    left, effect = second.diagonal().clone(), cross.double().square().sum(1)
    usable = COLLINEAR * scale.float() + TINY
    # What is left of cross is cross - basis @ taken, never formed: the squared lengths of its rows suffice.
    basis, taken = (
        torch.zeros(len(second), width, dtype=torch.float32),
        torch.zeros(width, cross.shape[1], dtype=torch.float32),
    )
    order, gains = [], []
    for step in range(min(width, len(second))):
        score = torch.where(left > usable, effect / left, -1.0)
        best = int(score.argmax())
        if score[best] <= 0:
            break
        order.append(best)
        gains.append(float(score[best]))
        root = left[best].sqrt()
        before, own = basis[:, :step], basis[best, :step]
        column = (second[:, best] - before @ own) / root
        row = (cross[best] - own @ taken[:step]) / root
        along = cross @ row - before @ (taken[:step] @ row)
        effect += column * (column * float(row.double().square().sum()) - 2 * along)
        basis[:, step], taken[step] = column, row
        left = left - column.square()
        left[best] = 0
    return torch.tensor(order, dtype=torch.long), torch.tensor(gains)


def _directions(second: Tensor, cross: Tensor, count: int, chosen: Tensor, rank: int) -> Tensor:
    """The linear directions that explain most of what the chosen neurons leave: [features, rank].

    Reference: Izenman, Reduced-rank regression for the multivariate linear model (1975), section 3.
    """
    if not rank:
        return torch.zeros(len(second) - count, 0, dtype=torch.float64)
    linear = slice(count, None)
    left, target = second[linear, linear], cross[linear]
    if len(chosen):
        own = second[chosen][:, chosen]
        own = own + torch.diag(1e-9 * own.diagonal() + TINY)
        solved = torch.linalg.solve(own, torch.cat([second[chosen][:, linear], cross[chosen]], 1))
        left = left - second[linear][:, chosen] @ solved[:, : len(left)]
        target = target - second[linear][:, chosen] @ solved[:, len(left) :]
    full = torch.linalg.solve(left, target)
    outputs = torch.linalg.eigh(full.T @ target).eigenvectors.flip(1)[:, :rank]
    directions: Tensor = full @ outputs
    return directions


def _joined(chosen: Neurons, linear: Neurons, out: Tensor) -> Neurons:
    """Chosen neurons and linear ones, which are never skipped, with new output rows."""
    rows, bias = torch.cat([chosen.rows, linear.rows], 1), torch.cat([chosen.bias, linear.bias], 1)
    threshold = chosen.threshold
    if threshold is not None:
        threshold = torch.cat([threshold, torch.full((len(linear),), -1.0, dtype=torch.float32)])
    return Neurons(rows, bias, out, chosen.activation, threshold)


def _padded(neurons: Neurons, width: int) -> Neurons:
    """Fill up with neurons that do nothing (there were fewer candidates and directions)."""
    missing = width - len(neurons)
    rows, bias = F.pad(neurons.rows, (0, 0, 0, missing)), F.pad(neurons.bias, (0, missing))
    threshold = None if neurons.threshold is None else F.pad(neurons.threshold, (0, missing), value=torch.inf)
    return Neurons(rows, bias, F.pad(neurons.out, (0, 0, 0, missing)), neurons.activation, threshold)
