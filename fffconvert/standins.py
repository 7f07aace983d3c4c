"""What stands in the places of a block's modules once a layer computes the block.

Code around a block goes on calling its projections and activations, so each place keeps a module.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn

from fffconvert.location import Placement


class Handover(threading.local):
    """Carries a block's result from the place of its first projection to that of its last.

    A result belongs to one call. Several threads may call the model side by side, and each has a slot of its
    own; within a thread the last projection takes out what the first one put in.
    """

    result: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Handover, ()


class StandIn(nn.Module):
    """Takes a module's place, and answers what surrounding code asks of a projection.

    Args:
        layer: What computes the block.
        placement: Where the block's modules were.
        handover: Carries the block's result where something lies between its modules; else None.
    """

    def __init__(self, layer: nn.Module, placement: Placement, handover: Handover | None) -> None:
        super().__init__()
        self._answers = (layer,)  # in a tuple, so that its parameters are registered only once
        self._placement = placement
        self._handover = handover
        self.register_forward_pre_hook(_nothing)

    @property
    def computed_by(self) -> nn.Module:
        """The layer that computes the block."""
        return self._answers[0]

    @property
    def weight(self) -> Tensor | None:
        """A parameter of the layer: code that asks wants its dtype or device."""
        return next(self.computed_by.parameters(), None)

    @property
    def bias(self) -> None:
        """No bias."""


def _nothing(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Keeps the fused path of `nn.TransformerEncoderLayer` away, which modules with hooks disable."""


class FirstProjection(StandIn):
    """In the place of the first up-projection: computes the whole block."""

    def __init__(self, layer: nn.Module, placement: Placement, handover: Handover | None) -> None:
        super().__init__(layer, placement, handover)
        self.layer = layer

    @property
    def placement(self) -> Placement:
        """Where the block's modules were when it was replaced."""
        return self._placement

    def forward(self, x: Tensor) -> Tensor:
        """Give the block's result, or keep it for the last projection and give a tensor of no content."""
        result: Tensor = self.layer(x)
        if self._handover is None:
            return result
        self._handover.result = result
        return _without_content(x, self._placement)


class Bypassed(StandIn):
    """In the place of an activation, or of a further up-projection."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Give the input, or a tensor of no content where the block's result is kept elsewhere."""
        return x if self._handover is None else _without_content(x, self._placement)


class LastProjection(StandIn):
    """In the place of the down-projection.

    Attributes:
        replaced_weight: Name, within the module replaced, of a weight that it had.
    """

    replaced_weight: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Give the block's result."""
        if self._handover is None:
            return x
        result, self._handover.result = self._handover.result, None
        if result is None:
            raise RuntimeError("the block's last projection was called before its first")
        return result


def _without_content(x: Tensor, placement: Placement) -> Tensor:
    shape = list(x.shape)
    shape[placement.feature_axis] = placement.width
    return x.new_zeros(shape)
