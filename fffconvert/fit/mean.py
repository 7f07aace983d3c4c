"""A block's mean output in the block's place: what is left of the model without the block."""

from __future__ import annotations

from torch import Tensor, nn


class MeanOutput(nn.Module):
    """Gives the same vector for every token.

    Args:
        mean: [d_model]
        feature_axis: Axis of the features in the input, -1 or 1.
    """

    def __init__(self, mean: Tensor, feature_axis: int = -1) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean)
        self.feature_axis = feature_axis

    def forward(self, x: Tensor) -> Tensor:
        """Give the mean, in the shape of `x`, whatever `x` is."""
        shape = [1] * x.dim()
        shape[self.feature_axis] = -1
        return self.mean.view(shape).expand_as(x)
