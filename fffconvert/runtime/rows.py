"""Rows stored in fewer bytes: bfloat16, or int8 with a scale per row."""

from __future__ import annotations

import torch
from torch import Tensor

from fffconvert.runtime.weights import VECTORS, Scales, Weights

ROW_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""Types in which rows can be stored, by name."""


def store_rows(weights: Weights, dtype: torch.dtype) -> tuple[Weights, Scales]:
    """Store the rows and constants in another type; biases and thresholds become float32.

    Args:
        weights: The trees.
        dtype: A value of `ROW_DTYPES`. int8 rows are symmetric: the largest element of a row becomes 127.

    Returns:
        The weights, and the scales of int8 rows.
    """
    rows, scales = {}, {}
    for name in Scales._fields:
        row = getattr(weights, name)
        if row is None:
            continue
        if dtype == torch.int8:
            rows[name], scales[name] = _quantize(row.detach())
        else:
            rows[name] = row.detach().to(dtype)
    given = {name: getattr(weights, name) for name in VECTORS}
    vectors = {name: tensor.detach().float() for name, tensor in given.items() if tensor is not None}
    return weights._replace(**rows, **vectors), Scales(**scales)


def _quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.float().abs().amax(-1) / 127
    steps = scale.where(scale > 0, 1.0)[..., None]  # a row of zeros stays one
    return (rows.float() / steps).round().to(torch.int8), scale
