"""What torch's `FlopCounterMode` counts for the op: the nodes of the paths taken, and the leaf blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import fffconvert.runtime.ops  # noqa: F401 (it defines the op)

Shape = Sequence[int]


@register_flop_formula(torch.ops.fffconvert.cmm)
def cmm_flops(
    x: Shape,
    in_weight: Shape,
    in_bias: Shape,
    out_weight: Shape,
    leaf_constant: Shape | None,
    leaf_in_weight: Shape | None,
    leaf_in_bias: Shape | None,
    leaf_gate_weight: Shape | None,
    *rest: Any,
    **kwargs: Any,
) -> int:
    """Floating point operations of `cmm`, two per multiply-add, from the shapes of its arguments."""
    trees, nodes, d_in = in_weight
    d_out = out_weight[-1]
    macs = (nodes + 1).bit_length() - 1
    macs *= d_in + d_out
    if leaf_in_weight is not None:
        macs += leaf_in_weight[2] * (d_in + d_out + (d_in if leaf_gate_weight is not None else 0))
    return 2 * x[0] * trees * macs
