"""Are the outputs right? A contestant whose outputs are not has no time worth stating.

Routing is discontinuous: where rounding may decide a branch, outputs differ by design. Such tokens are left
out. The truth is the reference in float64 on the rows as they are stored.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fffconvert.runtime import Weights, reference
from fffconvert.runtime.weights import Scales
from fffconvert.tree import FFFLayer

EPS = float(torch.finfo(torch.float32).eps)
MOST_LEFT_OUT = 0.5
"""Share of tokens of which at most so many may be left out of a comparison."""

CHECKED_TOKENS = 64
"""Outputs of at least so many tokens are checked, in calls of the measured size."""
MOST_TOKENS = 2048
"""Of larger calls about so many tokens are checked, spread over all: the truth in float64 takes long."""


class WrongOutputError(RuntimeError):
    """A contestant does not compute the layer."""


@dataclass(frozen=True)
class Truth:
    """What a layer with rows of some type should give for some tokens.

    Attributes:
        y: [kept, d_out], float64.
        kept: [tokens], whether no logit on a token's path is within the noise of 0.
        limit: Largest error that rounding explains: twice that of plain torch in float32, plus the noise.
        path_agreement: Share of (token, tree) that reach the leaf they reach with float32 rows.
        leaf: [tokens, T], the leaf that each token reaches, int64.
    """

    y: Tensor
    kept: Tensor
    limit: float
    path_agreement: float
    leaf: Tensor

    @property
    def left_out(self) -> float:
        """Share of tokens that are not compared."""
        return 1 - float(self.kept.double().mean())


def truth(layer: FFFLayer, dtype: str, x: Tensor, original: FFFLayer | None = None) -> Truth:
    """Compute a layer in float64 from its rows as stored in a type.

    Args:
        layer: In float32.
        dtype: "float32", "float16", "bfloat16" or "int8".
        x: [tokens, d_in]; outputs may be rounded to its dtype.
        original: The layer before its parameters were rounded, for `path_agreement`; by default `layer`.

    Raises:
        WrongOutputError: Too few tokens are clear of the noise for a comparison.
    """
    with torch.no_grad():
        stored = with_stored_rows(layer, dtype)
        precise = copy.deepcopy(stored).double()
        kept, leaf = clear_of_noise(stored, x)
        y, _ = _compute(precise, x.double()[kept])
        plain, _ = _compute(stored, x[kept])
        _, unrounded = _compute(layer if original is None else original, x)
    error, size = (float(t.abs().max()) if y.numel() else 0.0 for t in (plain.double() - y, y))
    limit = 2 * error + EPS * math.sqrt(layer.spec.d_in) * size
    return Truth(y, kept, limit, float((leaf == unrounded).double().mean()), leaf)


def clear_of_noise(layer: FFFLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that rounding cannot send another way.

    Args:
        layer: In float32.
        x: [tokens, d_in]

    Returns:
        kept: [tokens], whether every logit on the token's path is further from 0 than float32 sums are off.
        leaf: [tokens, T], the leaf that float64 sums lead to.

    Raises:
        WrongOutputError: Too few tokens are left for a comparison.
    """
    with torch.no_grad():
        weights = copy.deepcopy(layer).double().weights
        _, logits, leaf = reference.forward(x.double(), weights, layer.spec.activation)
        kept = (logits.abs() > _noise(x, weights, leaf)).flatten(1).all(1)
    out = len(x) - int(kept.sum())
    if out > MOST_LEFT_OUT * len(x):
        raise WrongOutputError(
            f"{out} of {len(x)} tokens have a logit within rounding of 0: too few are left to check outputs"
        )
    return kept, leaf


def largest_error(y: Tensor, expected: Truth, who: str) -> float:
    """The largest error of outputs, over the largest of the true ones.

    Args:
        y: [tokens, d_out]
        expected: For the same tokens.
        who: Whose outputs, for the message.

    Raises:
        WrongOutputError: It is more than rounding explains, or not a number.
    """
    if not expected.y.numel():
        return 0.0
    error = float((y.double()[expected.kept] - expected.y).abs().max())
    size = float(expected.y.abs().max()) or 1.0
    if not error <= expected.limit:
        raise WrongOutputError(
            f"{who} gives wrong outputs: they are off by {error / size:.1e} of the largest, "
            f"rounding explains {expected.limit / size:.1e}"
        )
    return error / size


def findings(y: Tensor, expected: Truth, who: str) -> dict[str, float | None]:
    """What a row of figures says of a contestant's outputs; arguments and errors as of `largest_error`."""
    return {
        "max_error": largest_error(y, expected, who),
        "left_out": expected.left_out,
        "path_agreement": expected.path_agreement,
    }


def with_stored_rows(layer: FFFLayer, dtype: str) -> FFFLayer:
    """A copy whose float32 rows have the values that they keep when stored in a type."""
    stored = copy.deepcopy(layer)
    for name in Scales._fields:
        parameter = getattr(stored, f"fff_{name}")
        if parameter is not None:
            parameter.data = _round(parameter.data, dtype)
    return stored


def _compute(layer: FFFLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and leaves in plain torch: the op itself may run on the very backend that is checked."""
    y, _, leaf = reference.forward(x, layer.weights, layer.spec.activation)
    y = y + layer.fff_bias
    if layer.fff_trunk_in is not None and layer.fff_trunk_out is not None:
        y = y + x.to(layer.fff_bias.dtype) @ layer.fff_trunk_in.T @ layer.fff_trunk_out
    return y, leaf


def _round(rows: Tensor, dtype: str) -> Tensor:
    if dtype in ("bfloat16", "float16"):
        return rows.to(getattr(torch, dtype)).float()
    if dtype == "int8":
        largest = rows.abs().amax(-1, keepdim=True)
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        return (rows / scale).round().clamp(-127, 127) * scale
    return rows


def _noise(x: Tensor, weights: Weights, leaf: Tensor) -> Tensor:
    """Rounding error that float32 sums may have in the logits along a path: [tokens, T, D + 1]."""
    size = weights.in_weight.norm(dim=2)
    levels = torch.arange(weights.depth + 1)
    nodes = (leaf[:, :, None] >> (weights.depth + 1 - levels)) + (1 << levels) - 1
    trees = torch.arange(len(size))[:, None]
    products = x.double().norm(dim=1)[:, None, None] * size[trees, nodes]
    noise: Tensor = EPS * (math.sqrt(x.shape[1]) * products + weights.in_bias[trees, nodes].abs())
    return noise
