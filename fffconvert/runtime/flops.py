"""What torch's `FlopCounterMode` counts for the ops: the nodes of the paths taken, and the leaf blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

import fffconvert.runtime.ops  # noqa: F401 (it defines the ops)
from fffconvert.runtime.weights import Weights

Shape = Sequence[int]

for _op in (torch.ops.fffconvert.cmm, torch.ops.fffconvert.cmm_inference):
    flop_registry.pop(_op, None)  # registered before, where modules are imported again


@register_flop_formula(torch.ops.fffconvert.cmm)
def cmm_flops(x: Shape, *weights: Any, **kwargs: Any) -> int:
    """Floating point operations of `cmm`, two per multiply-add, from the shapes of its arguments."""
    return _flops(x, weights)


@register_flop_formula(torch.ops.fffconvert.cmm_inference)
def cmm_inference_flops(x: Shape, bias: Shape, *weights: Any, **kwargs: Any) -> int:
    """Floating point operations of `cmm_inference`."""
    return _flops(x, weights)


def _flops(x: Shape, weights: Sequence[Any]) -> int:
    """Two per multiply-add of the nodes of each path, and of the leaf block at its end.

    What thresholds skip depends on the tokens, not on shapes, and counts in full.

    Args:
        x: Shape [tokens, d_in].
        weights: Shapes of the fields of `Weights`, and whatever follows them.
    """
    shapes = Weights(*weights[: len(Weights._fields)])
    trees, nodes, d_in = shapes.in_weight
    width = d_in + shapes.out_weight[-1]
    macs = (nodes + 1).bit_length() - 1
    macs *= width
    if shapes.leaf_in_weight is not None:
        macs += shapes.leaf_in_weight[2] * (width + (d_in if shapes.leaf_gate_weight is not None else 0))
    return int(2 * x[0] * trees * macs)
