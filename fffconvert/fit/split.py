"""Hyperplanes that part a node's tokens into two regions, each of which one linear map describes better.

Hard expectation-maximisation: fit a linear expert to either side, ask of each token which of the two serves
it better, and turn the hyperplane towards the answers by logistic regression.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 3
"""Rounds of experts and hyperplane."""
SAMPLE = 8192
"""A hyperplane is sought on at most so many of the node's tokens."""
LEAST_TOKENS_PER_FEATURE = 2
"""With fewer, two experts say more about noise than about the tokens."""
EXPERT_RIDGE = 300.0
"""Ridge of an expert on whitened inputs, in tokens."""
ROUTER_RIDGE = 0.02
"""Ridge of the logistic regression on whitened inputs, per token."""
NEWTON_STEPS = 10
BALANCE = 0.15
"""Least share of the tokens on either side."""
LEVERAGE = 4.0
"""Tokens with inputs of more than so many times the median energy count the less."""
CLIP = 0.98
"""Quantile of the gains beyond which they count no more."""
FLOOR = 1e-6
"""Variance under which an input is noise, relative to the largest."""
TINY = 1e-30


def turn(
    z: Tensor, variance: Tensor, outputs: Tensor, weight: Tensor, row: Tensor, cut: float
) -> tuple[Tensor, float]:
    """Turn a hyperplane so that linear experts on its two sides fit better.

    Args:
        z: [tokens, features], the node's inputs, uncorrelated over all tokens.
        variance: [features], of each input over all tokens.
        outputs: [tokens, k], what the experts are to explain.
        weight: [tokens]
        row: [features], where to start: right is `z @ row > cut`.
        cut: Its threshold.

    Returns:
        The new row, of unit length, and its threshold. The old ones, if the tokens are too few.

    Reference: Jordan and Jacobs, Hierarchical mixtures of experts and the EM algorithm (1994), with hard
    assignments.
    """
    stride = -(-len(z) // SAMPLE)
    z, outputs, weight = z[::stride], outputs[::stride], weight[::stride]
    if len(z) < 2 * LEAST_TOKENS_PER_FEATURE * z.shape[1]:
        return row, cut
    scale = (variance + FLOOR * variance.max()).clamp(min=TINY).rsqrt()
    design = torch.cat([z * scale, torch.ones(len(z), 1, dtype=torch.float32)], 1)
    energy = design.square().sum(1)
    weight = weight * (LEVERAGE * energy.median() / energy).clamp(max=1)
    right = z @ row > cut
    for _ in range(STEPS):
        errors = [_expert_error(design, outputs, weight, side) for side in (~right, right)]
        gain = errors[0] - errors[1]
        importance = weight * gain.abs()
        importance = importance.clamp(max=float(importance.quantile(CLIP)))
        router = _logistic(design, gain > 0, importance / importance.mean().clamp(min=TINY))
        position = design @ router
        low, high = position.quantile(position.new_tensor([BALANCE, 1 - BALANCE])).tolist()
        offset = min(max(0.0, low), high)
        right = position > offset
        if not bool(router[:-1].any()):
            return row, cut
        row, cut = router[:-1] * scale, offset - float(router[-1])
    length = float(torch.linalg.vector_norm(row))
    return row / length, cut / length


def _expert_error(design: Tensor, outputs: Tensor, weight: Tensor, side: Tensor) -> Tensor:
    """Squared error on every token of the linear map that fits one side: [tokens]."""
    own, share = design[side], weight[side, None]
    gram = (own * share).T @ own
    gram.diagonal()[:-1] += EXPERT_RIDGE * weight.mean()
    gram.diagonal()[-1] += TINY
    coefficients = torch.linalg.solve(gram, (own * share).T @ outputs[side])
    error: Tensor = (outputs - design @ coefficients).square().sum(1)
    return error


def _logistic(design: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Ridge logistic regression by Newton steps with the bound of the Hessian: [features + 1].

    Reference: Böhning and Lindsay, Monotonicity of quadratic-approximation algorithms (1988).
    """
    hessian = ((design * (weight / 4)[:, None]).T @ design).double()
    ridge = torch.full((design.shape[1],), ROUTER_RIDGE * len(design), dtype=torch.float32)
    ridge[-1] = 0
    hessian.diagonal().add_(ridge + 1e-5 * hessian.diagonal().mean())
    factor = torch.linalg.cholesky(hessian).float()
    coefficients = torch.zeros(design.shape[1], dtype=torch.float32)
    for _ in range(NEWTON_STEPS):
        miss = weight * (torch.sigmoid(design @ coefficients) - target.float())
        gradient = design.T @ miss + ridge * coefficients
        coefficients = coefficients - torch.cholesky_solve(gradient[:, None], factor)[:, 0]
    return coefficients
