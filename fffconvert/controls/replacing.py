"""Block after block of a model, each replaced by what is made for the inputs that it still gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fffconvert import surgery
from fffconvert.fit.calibrate import Batch
from fffconvert.fit.stream import ActivationStream
from fffconvert.location import FFNSite


def replace_each(
    model: nn.Module,
    sites: Sequence[FFNSite],
    batches: Sequence[Batch],
    make: Callable[[FFNSite, Tensor], nn.Module],
) -> None:
    """Replace the blocks of a model in their order.

    Args:
        model: The model, changed in place.
        sites: Its blocks.
        batches: Keyword arguments of forward passes.
        make: Gives the replacement of a block for its inputs, [tokens, d_model], which come from a model
            that has the earlier replacements.
    """
    stream = ActivationStream(model, sites, batches)
    for site in sites:
        surgery.replace(model, {site: make(site, torch.cat(stream.inputs(site)))})
