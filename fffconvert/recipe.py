"""How a model is converted, as one record of plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fffconvert.errors import FFFError
from fffconvert.planning import FFFSpec, LayerForm


@dataclass(frozen=True)
class Recipe:
    """How a model is converted; stored beside the converted model as `fffconvert.yaml`.

    Attributes:
        depth: Depth D of each tree.
        trees: Number of trees of each layer.
        trunk: Rank of the always-active linear map beside the trees.
        leaf_width: Neurons of the dense block at each end of a path; 0 for none.
        leaf_sparsity: Share of them that a token skips, those of small activation.
        layer: Form of the layer.
        include: Patterns of blocks to convert; empty for all.
        exclude: Patterns of blocks to leave.
        tokens: Calibration tokens, held-out ones included.
        length: Longest calibration sequence, in tokens.
        min_expansion: Least ratio of d_hidden to d_model.
        seed: Order of the calibration text.
        sequential: Fit each block on the inputs that the converted blocks before it give; else on those of
            the original model.
        refine: Passes over the tokens in which gradient steps refine each layer on its block's output; 0 for
            none.
        text_columns: Of rows of data, those that hold text; empty to find them by their usual names.
        shapes: For each block of a plan what differs from the numbers above; other blocks are left.
    """

    depth: int
    trees: int = 1
    trunk: int = 0
    leaf_width: int = 0
    leaf_sparsity: float = 0.0
    layer: LayerForm = LayerForm.BRANCH
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tokens: int = 100_000
    length: int = 128
    min_expansion: float = 1.0
    seed: int = 0
    sequential: bool = True
    refine: int = 0
    text_columns: tuple[str, ...] = ()
    shapes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", LayerForm(self.layer))
        for name, low in (("tokens", 256), ("length", 8), ("refine", 0)):
            if getattr(self, name) < low:
                raise FFFError(f"{name} is {getattr(self, name)}; expected at least {low}")
        # This checks the numbers before a model is read.
        FFFSpec(1, 1, self.depth, self.trees, self.trunk, False, self.leaf_width, self.leaf_sparsity)
        if self.leaf_width and self.layer is LayerForm.PAPER:
            raise FFFError(
                f"leaf width is {self.leaf_width} and the layer the paper's, which has no leaf blocks; "
                "expected leaf width 0, or layer branch"
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, for YAML."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "layer": self.layer.value,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "text_columns": list(self.text_columns),
        }
