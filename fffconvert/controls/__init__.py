"""What a conversion is held against: its original with ablated, dense or randomly routed blocks."""

from __future__ import annotations

from fffconvert.controls.ablated import ablate_blocks
from fffconvert.controls.dense import dense_control, dense_layer
from fffconvert.controls.kinds import Control, frozen_parameters
from fffconvert.controls.make import make_control
from fffconvert.controls.random_routing import randomly_routed

__all__ = [
    "Control",
    "ablate_blocks",
    "dense_control",
    "dense_layer",
    "frozen_parameters",
    "make_control",
    "randomly_routed",
]
