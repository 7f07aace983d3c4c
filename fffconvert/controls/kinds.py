"""Which controls there are, and which of their parameters are not trained."""

from __future__ import annotations

from enum import Enum

from fffconvert.planning import FFFSpec


class Control(str, Enum):
    """What stands in the place of each block."""

    ABLATED = "ablated"
    """Its mean output: one trained bias."""
    DENSE = "dense"
    """A dense block of the conversion's active width, begun from the original's best neurons."""
    RANDOM_ROUTING = "random-routing"
    """The converted layer with hyperplanes drawn at random, through the middle of what comes there."""
    ORIGINAL = "original"
    """The block itself."""


def frozen_parameters(control: Control | None, spec: FFFSpec) -> tuple[str, ...]:
    """Parameters of a layer that are not trained: thresholds, which have no gradient, and a control's."""
    thresholds = ("fff_leaf_threshold",) if spec.leaf_sparsity else ()
    if control is Control.RANDOM_ROUTING:
        return ("fff_in_weight", "fff_in_bias", *thresholds)
    if control is Control.ABLATED or (control is Control.DENSE and spec.leaf_width):
        return ("fff_in_weight", "fff_in_bias", "fff_out_weight")
    return thresholds
