"""The trunk: the best linear map of a given rank, by reduced-rank regression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.fit.moments import second_moment

RIDGE = 1.0
"""Ridge on standardised inputs, in units of features per token: the sampling error of a covariance."""


def fit_trunk(z: Tensor, variance: Tensor, y: Tensor, rank: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Fit y ≈ z A B with A [features, rank] and B [rank, d_out]; the rows of B are orthonormal.

    The fitted values of a ridge regression are projected on the directions in which they vary most.

    Args:
        z: [tokens, features], centred and uncorrelated.
        variance: [features], the variance of each feature.
        y: [tokens, d_out], centred.
        weight: [tokens], of mean 1.
        rank: Rank of the map; columns of A and rows of B beyond what d_out allows are zero.

    Returns:
        A.T, [rank, features], and B, [rank, d_out], in float64.

    Reference: Izenman, Reduced-rank regression for the multivariate linear model (1975), section 3.
    """
    covariance = second_moment(z, y, weight)
    ridge = RIDGE * z.shape[1] / len(z)
    full = covariance / (variance.double() + ridge)[:, None]
    outputs = torch.linalg.eigh(covariance.T @ full).eigenvectors.flip(1)[:, :rank]
    missing = rank - outputs.shape[1]
    return F.pad((full @ outputs).T, (0, 0, 0, missing)), F.pad(outputs.T, (0, 0, 0, missing))
