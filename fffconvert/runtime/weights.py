"""The parameters of one layer's trees, as the ops take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def skip_small(a: Tensor, threshold: Tensor | None) -> Tensor:
    """Activations of leaf blocks, 0 where they are no larger than their thresholds; NaN stays NaN.

    Args:
        a: [..., L]
        threshold: What spreads to the shape of `a`; None where nothing is skipped.
    """
    return a if threshold is None else a.masked_fill(a.abs() <= threshold.to(a.dtype), 0)


class LeafBlock(NamedTuple):
    """The leaf blocks' weights and biases; `gate` and `threshold` only where there are some."""

    up: tuple[Tensor, Tensor]
    gate: tuple[Tensor, Tensor] | None
    out: Tensor
    threshold: Tensor | None


class Weights(NamedTuple):
    """Parameters of the trees of one layer, all of one dtype.

    T trees of depth D have N = 2^(D+1) - 1 nodes in heap order and 2^(D+1) leaves. There is an output row per
    node (B = 1) or per branch (B = 2: branch b of node n has row 2n + b).

    Attributes:
        in_weight: [T, N, d_in]
        in_bias: [T, N]
        out_weight: [T, B * N, d_out]
        leaf_constant: [T, leaves, d_out], added at the end of a path.
        leaf_in_weight: [T, leaves, L, d_in]; this, its bias and `leaf_out_weight` are a dense block per leaf.
        leaf_in_bias: [T, leaves, L]
        leaf_gate_weight: [T, leaves, L, d_in]; with its bias, what the activation is multiplied by.
        leaf_gate_bias: [T, leaves, L]
        leaf_out_weight: [T, leaves, L, d_out]
        leaf_threshold: [T, leaves, L], floating point. Neurons whose activation is no larger, in absolute
            value, count as 0, and the rest of them need not be computed.
    """

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    leaf_constant: Tensor | None = None
    leaf_in_weight: Tensor | None = None
    leaf_in_bias: Tensor | None = None
    leaf_gate_weight: Tensor | None = None
    leaf_gate_bias: Tensor | None = None
    leaf_out_weight: Tensor | None = None
    leaf_threshold: Tensor | None = None

    @property
    def depth(self) -> int:
        """Depth D of the trees."""
        return int(self.in_weight.shape[1]).bit_length() - 1

    @property
    def branches(self) -> int:
        """Output rows per node, B."""
        return self.out_weight.shape[1] // self.in_weight.shape[1]

    @property
    def leaf_block(self) -> LeafBlock | None:
        """The dense blocks at the leaves, if there are any."""
        if self.leaf_in_weight is None or self.leaf_in_bias is None or self.leaf_out_weight is None:
            return None
        gate = None
        if self.leaf_gate_weight is not None and self.leaf_gate_bias is not None:
            gate = (self.leaf_gate_weight, self.leaf_gate_bias)
        up = (self.leaf_in_weight, self.leaf_in_bias)
        return LeafBlock(up, gate, self.leaf_out_weight, self.leaf_threshold)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that each field must have beside the input and output rows there are."""
        trees, nodes, d_in = self.in_weight.shape
        rows, d_out = self.out_weight.shape[1:]
        leaves = nodes + 1
        width = self.leaf_out_weight.shape[2] if self.leaf_out_weight is not None else 0
        return {
            "in_weight": (trees, nodes, d_in),
            "in_bias": (trees, nodes),
            "out_weight": (trees, 2 * nodes if rows == 2 * nodes else nodes, d_out),
            "leaf_constant": (trees, leaves, d_out),
            "leaf_in_weight": (trees, leaves, width, d_in),
            "leaf_in_bias": (trees, leaves, width),
            "leaf_gate_weight": (trees, leaves, width, d_in),
            "leaf_gate_bias": (trees, leaves, width),
            "leaf_out_weight": (trees, leaves, width, d_out),
            "leaf_threshold": (trees, leaves, width),
        }

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of logits and sums for the input `x`."""
        return torch.promote_types(torch.promote_types(x.dtype, self.in_weight.dtype), torch.float32)


VECTORS = tuple(name for name in Weights._fields if name.endswith(("bias", "threshold")))
"""The fields that hold numbers one by one, not rows: in floating point whatever the type of the rows."""


class Scales(NamedTuple):
    """What each row of int8 weights is multiplied by, float32; all None for floating point rows.

    Attributes:
        in_weight: [T, N]
        out_weight: [T, B * N]
        leaf_constant: [T, leaves]
        leaf_in_weight: [T, leaves, L]
        leaf_gate_weight: [T, leaves, L]
        leaf_out_weight: [T, leaves, L]
    """

    in_weight: Tensor | None = None
    out_weight: Tensor | None = None
    leaf_constant: Tensor | None = None
    leaf_in_weight: Tensor | None = None
    leaf_gate_weight: Tensor | None = None
    leaf_out_weight: Tensor | None = None
