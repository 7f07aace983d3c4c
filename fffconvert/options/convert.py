"""Options of `convert`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fffconvert.errors import FFFError
from fffconvert.options.common import Calibrated, Writing, choice
from fffconvert.options.fields import option
from fffconvert.planning.file import SHAPE, Plan, PlannedBlock
from fffconvert.planning.spec import FFFSpec, LayerForm

_STORED = (
    *(*SHAPE, "layer", "include", "exclude", "tokens", "length", "min_expansion", "seed", "sequential"),
    *("refine", "text_columns", "lines"),
)
"""What says how the layers were made; the rest belongs to one call."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Calibrated, Writing):
    """How a model is converted; stored beside the converted model as `fffconvert.yaml`.

    Attributes:
        output: Folder to write the converted model to.
        depth: Depth D of each tree: D + 1 neurons a token, 2^(D + 1) - 1 in all.
        plan: Shapes of the layers instead of `depth`: what `plan` found, or the file that holds it.
        trees: Trees side by side.
        trunk: Rank of the always-active linear map beside the trees; 0 for none.
        leaf_width: Neurons of the dense block at each path's end, taken from the original; 0 for none.
        leaf_sparsity: Share of a leaf's neurons that a token skips, those of small activation.
        layer: An output row per branch fits better; one per node is the paper's.
        sequential: Fit each block on what the converted ones before it give, or the originals.
        refine: Passes of gradient steps that refine each layer on its block's output; 0 for none.
        specs: What each block becomes instead of `depth`, by name; other blocks are left.
        keep_originals: Keep the original blocks of a model in memory, so that `restore` can put them back.
    """

    output: Path | None = option(None, short="-o", required=True)
    depth: int | None = None
    plan: Plan | Path | None = None
    trees: int = 1
    trunk: int = 0
    leaf_width: int = 0
    leaf_sparsity: float = 0.0
    layer: LayerForm = LayerForm.BRANCH
    sequential: bool = True
    refine: int = 0
    specs: Mapping[str, FFFSpec] | None = option(None, python=True)
    keep_originals: bool = option(True, python=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("depth", "plan", "specs") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"`{name}`" for name in given) or "neither"
            raise FFFError(f"expected exactly one of `depth` and `plan`; found {found}")
        if self.depth is None:
            for name in SHAPE[1:]:
                if getattr(self, name) != getattr(type(self), name):
                    raise FFFError(f"`{name}` is given beside a plan, which says it of each block")
        object.__setattr__(self, "layer", choice(LayerForm, "layer", self.layer))
        if isinstance(self.plan, str | Path):
            object.__setattr__(self, "plan", Plan.read(self.plan))
        if self.refine < 0:
            raise FFFError(f"`refine` is {self.refine}; expected at least 0")
        # This checks the numbers before a model is read.
        FFFSpec(1, 1, self.depth or 0, self.trees, self.trunk, False, self.leaf_width, self.leaf_sparsity)
        if self.leaf_width and self.layer is LayerForm.PAPER:
            raise FFFError(
                f"`leaf_width` is {self.leaf_width} and the layer the paper's, which has no leaf blocks; "
                "expected `leaf_width=0`, or `layer=branch`"
            )

    @property
    def shapes(self) -> dict[str, dict[str, float]]:
        """What a block becomes, by name, where that is not the same for all."""
        if self.specs is not None:
            return {name: PlannedBlock.of(spec).shape for name, spec in self.specs.items()}
        return self.plan.shapes if isinstance(self.plan, Plan) else {}

    def to_dict(self) -> dict[str, Any]:
        """How the layers were made, as plain values for YAML."""
        values = {name: getattr(self, name) for name in _STORED}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**plain, "layer": self.layer.value, "shapes": self.shapes}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> ConvertOptions:
        """The options that `to_dict` wrote, with some of them changed.

        Raises:
            FFFError: A value is out of range.
        """
        known = {name: values[name] for name in _STORED if name in values}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        if shapes := values.get("shapes"):
            known["depth"], known["plan"] = None, Plan.of_shapes(shapes)
        return cls(**{**known, **changes})

    def replace(self, **changes: Any) -> ConvertOptions:
        """These options with some of them changed."""
        return dataclasses.replace(self, **changes)
