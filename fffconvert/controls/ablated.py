"""Blocks ablated: the mean output in the place of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fffconvert.controls.replacing import replace_each
from fffconvert.fit.calibrate import Batch
from fffconvert.fit.mean import MeanOutput
from fffconvert.fit.moments import token_weights
from fffconvert.location import FFNSite
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer


@torch.no_grad()
def ablated_layer(spec: FFFSpec, y: Tensor) -> FFFLayer:
    """One node that gives nothing, and the block's mean output."""
    layer = FFFLayer(FFFSpec(spec.d_in, spec.d_out, 0, activation=spec.activation), dtype=torch.float32)
    for parameter in layer.parameters():
        parameter.zero_()
    layer.fff_bias.copy_(token_weights(y) @ y / len(y))
    return layer


def ablate_blocks(model: nn.Module, sites: Sequence[FFNSite], batches: Sequence[Batch]) -> None:
    """Replace block after block by its mean output on what it still gets."""

    @torch.no_grad()
    def mean(site: FFNSite, x: Tensor) -> nn.Module:
        return MeanOutput(site.dense()(x).mean(0), site.placement.feature_axis)

    replace_each(model, sites, batches, mean)
