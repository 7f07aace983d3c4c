"""The specification of an FFF layer: its shape, its options and their limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fffconvert.activation_names import ACTIVATION_NUMBERS
from fffconvert.errors import FFFError

MAX_DEPTH = 20
"""2^21 - 1 nodes; at d_model 768 a deeper tree would need over 12 GB of float32 rows."""
MAX_TREES = 65_536
MAX_WIDTH = 1 << 20


@dataclass(frozen=True)
class FFFSpec:
    """Shape and options of one FFF layer.

    Attributes:
        d_in: Width of the input, in features.
        d_out: Width of the output, in features.
        depth: Depth D of each tree; levels 0..D, 2^(D+1) - 1 nodes.
        trees: Number of trees T side by side.
        trunk: Rank R of the always-active linear map beside the trees; 0 for none.
        branch_outputs: A node has an output row for each of its two branches, and each path a constant.
        leaf_width: Neurons L in the dense block that each of the 2^(D+1) path ends holds; 0 for none.
        leaf_sparsity: Share of a leaf's neurons that a token skips once their activation is known to be small
            (of all tokens and neurons on the text that the layer was fitted on); 0 for none.
        leaf_gated: The leaf blocks are gated: the activation of one projection times a second.
        activation: Name of the activation, a key of `fffconvert.activation_names.ACTIVATION_NUMBERS`.
        feature_axis: Axis of the input that holds the features (-1, or 1 for convolution layouts).

    Reference: arXiv 2311.10770, section 3; arXiv 2308.14711 for leaf blocks; arXiv 2404.08763 for thresholds.
    """

    d_in: int
    d_out: int
    depth: int
    trees: int = 1
    trunk: int = 0
    branch_outputs: bool = False
    leaf_width: int = 0
    leaf_sparsity: float = 0.0
    leaf_gated: bool = False
    activation: str = "gelu"
    feature_axis: int = -1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("d_in", 1, MAX_WIDTH),
            ("d_out", 1, MAX_WIDTH),
            ("depth", 0, MAX_DEPTH),
            ("trees", 1, MAX_TREES),
            ("trunk", 0, MAX_WIDTH),
            ("leaf_width", 0, MAX_WIDTH),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise FFFError(f"{name} is {value!r}; expected an integer from {low} to {high}")
        sparsity = self.leaf_sparsity
        if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
            raise FFFError(f"leaf_sparsity is {sparsity!r}; expected a share from 0 to below 1")
        if sparsity and not self.leaf_width:
            raise FFFError(f"leaf_sparsity is {sparsity} without leaf blocks; expected leaf_width too")
        for name in ("branch_outputs", "leaf_gated"):
            if not isinstance(getattr(self, name), bool):
                raise FFFError(f"{name} is {getattr(self, name)!r}; expected true or false")
        if not isinstance(self.feature_axis, int) or self.feature_axis not in (-1, 1):
            raise FFFError(f"feature_axis is {self.feature_axis!r}; expected -1 or 1")
        if self.activation not in ACTIVATION_NUMBERS:
            raise FFFError(
                f"unknown activation {self.activation!r}; expected one of {', '.join(ACTIVATION_NUMBERS)}"
            )

    @property
    def nodes(self) -> int:
        """Nodes of one tree."""
        return (1 << (self.depth + 1)) - 1

    @property
    def leaves(self) -> int:
        """Ends of paths of one tree: the two branches of each node of the last level."""
        return 1 << (self.depth + 1)

    @property
    def active_width(self) -> int:
        """Neurons that a token passes through, R + T (D + 1 + L), skipped ones by the part computed."""
        neuron = self.d_in + self.d_out + (self.d_in if self.leaf_gated else 0)
        leaf = math.ceil(self._leaf_macs / neuron)
        return self.trunk + self.trees * (self.depth + 1 + leaf)

    @property
    def _leaf_macs(self) -> int:
        """Multiply-adds of one token in one leaf block: all activations, and what is behind those kept."""
        behind = self.d_out + (self.d_in if self.leaf_gated else 0)
        return round(self.leaf_width * (self.d_in + (1 - self.leaf_sparsity) * behind))

    def stated(self) -> dict[str, Any]:
        """What is stated of a layer wherever layers are listed."""
        names = ("trees", "depth", "trunk", "leaf_width", "leaf_sparsity", "active_width", "parameters")
        return {name: getattr(self, name) for name in names}

    @property
    def macs_per_token(self) -> int:
        """Multiply-adds of one token, counting one per weight that is multiplied."""
        d = self.d_in + self.d_out
        return self.trunk * d + self.trees * ((self.depth + 1) * d + self._leaf_macs)

    @property
    def parameters(self) -> int:
        """Stored parameters of the layer."""
        branches = 2 if self.branch_outputs else 1
        tree = self.nodes * (self.d_in + 1) + branches * self.nodes * self.d_out
        if self.branch_outputs:
            tree += self.leaves * self.d_out
        gate = self.d_in + 1 if self.leaf_gated else 0
        threshold = 1 if self.leaf_sparsity else 0
        leaf = self.leaves * self.leaf_width * (self.d_in + 1 + self.d_out + gate + threshold)
        return self.trees * (tree + leaf) + self.trunk * (self.d_in + self.d_out) + self.d_out


def leaf_in_words(width: int, sparsity: float) -> str:
    """Neurons of a leaf block, and the share of them that a token skips, for people."""
    return f"{width} ({sparsity:.0%} skipped)" if sparsity else str(width)


class LayerForm(str, Enum):
    """Which form of FFF layer takes a block's place."""

    BRANCH = "branch"
    """An output row for each branch of a node and a constant for each path: the better fit."""
    PAPER = "paper"
    """One output row for each node, as published. Reference: arXiv 2311.10770, section 3."""
