"""Means, second moments and principal coordinates of activations, summed in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-30
CHUNK = 8192
"""Tokens that are multiplied in float32 before their sum goes to float64."""


def token_weights(y: Tensor) -> Tensor:
    """Weights under which no token counts for much more than another: [tokens], of mean 1.

    A few tokens (the first of a text, separators) often carry nearly all the variance of a block's output.
    What follows a block normalises each token, so the error that matters is relative to the token's own size.

    Args:
        y: [tokens, d_out], what a block made of the tokens.
    """
    energy = torch.linalg.vector_norm(y - y.median(0).values, dim=1).square()
    weight: Tensor = 1 / (1 + energy / energy.median().clamp(min=TINY))
    return weight / weight.mean()


def centre(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean without losing what a large offset hides.

    Args:
        x: [tokens, features], float32.
        weight: [tokens], of mean 1.

    Returns:
        The mean, [features] in float64, and the centred `x`, [tokens, features] in float32.
    """
    mean = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in _chunks(len(x)):
        mean += weight[part].double() @ x[part].double()
    mean /= len(x)
    centred = torch.empty_like(x)
    for part in _chunks(len(x)):
        centred[part] = x[part].double() - mean
    return mean, centred


def second_moment(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The mean of the outer products of the rows of a and b.

    Args:
        a: [tokens, m]
        b: [tokens, n]
        weight: [tokens], of mean 1.

    Returns:
        [m, n] in float64.
    """
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for part in _chunks(len(a)):
        total += (a[part] * weight[part, None]).T @ b[part]
    return total / len(a)


@dataclass(frozen=True)
class Principal:
    """Activations in the principal axes of their standardised features: z = (x - mean) axes.

    Attributes:
        mean: [features], float64.
        axes: [features, features], float64, one axis per column; zero rows for constant features.
        variance: [features], float32, the variance of each coordinate; their mean is at most 1.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> tuple[Principal, Tensor]:
        """Find the principal coordinates of x: [tokens, features], and x in them, in float32."""
        mean, centred = centre(x, weight)
        covariance = second_moment(centred, centred, weight)
        deviation = covariance.diagonal().sqrt()
        # What varies by less than float32 resolves is a constant feature with rounding on it.
        varies = deviation > 1e-6 * mean.abs()
        scale = torch.where(varies, deviation, torch.inf).reciprocal()
        variance, vectors = torch.linalg.eigh(scale[:, None] * covariance * scale)
        axes = scale[:, None] * vectors
        return cls(mean, axes, variance.clamp(min=0).float()), centred @ axes.float()

    def rows(self, rows: Tensor) -> Tensor:
        """Linear functionals given in these coordinates, [..., features], as functionals of x - mean."""
        return rows.double() @ self.axes.T


def _chunks(tokens: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, tokens, CHUNK))
