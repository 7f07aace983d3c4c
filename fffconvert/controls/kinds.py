"""Which controls there are, and which of their parameters are not trained."""

from __future__ import annotations

from fffconvert.options.distill import Control
from fffconvert.planning import FFFSpec

__all__ = ["Control", "frozen_parameters"]


def frozen_parameters(control: Control | None, spec: FFFSpec) -> tuple[str, ...]:
    """Parameters of a layer that are not trained: thresholds, which have no gradient, and a control's."""
    thresholds = ("fff_leaf_threshold",) if spec.leaf_sparsity else ()
    if control is Control.RANDOM_ROUTING:
        return ("fff_in_weight", "fff_in_bias", *thresholds)
    if control is Control.ABLATED or (control is Control.DENSE and spec.leaf_width):
        return ("fff_in_weight", "fff_in_bias", "fff_out_weight")
    return thresholds
