"""Locate the feedforward blocks of any transformer by dataflow on a recorded FX graph."""

from __future__ import annotations

from torch import nn

from fffconvert.errors import FFFError
from fffconvert.location.capturing import capture
from fffconvert.location.inputs import Inputs, inputs_for
from fffconvert.location.match import find_blocks
from fffconvert.location.sites import (
    BlockKind,
    DenseBlock,
    FFNSite,
    Placement,
    Position,
    Projection,
    Sites,
    Skipped,
)

__all__ = [
    "BlockKind",
    "DenseBlock",
    "FFNSite",
    "Placement",
    "Position",
    "Projection",
    "Sites",
    "Skipped",
    "locate",
]


def locate(model: nn.Module, example_inputs: Inputs | None = None, *, min_expansion: float = 1.0) -> Sites:
    """Find the feedforward blocks of a model.

    The model is run once on small inputs and is left as it was. Only executed code is seen.

    Args:
        model: Any module; for transformers models the inputs are guessed from the config.
        example_inputs: What one forward pass takes, where it cannot be guessed: a tensor, a tuple of
            arguments, or a mapping of them by name.
        min_expansion: Least ratio of d_hidden to d_model; what is narrower is taken for an adapter.

    Returns:
        The blocks in the order in which they run, and what was skipped with the reason.

    Raises:
        FFFError: No example inputs were given and none could be guessed, or the model fails on them.
    """
    inputs = inputs_for(model, example_inputs)
    try:
        captured = capture(model, inputs)
    except Exception as error:  # whatever a foreign forward raises
        raise FFFError(
            f"the model does not run on the example inputs ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}); pass example_inputs, the arguments of one forward pass"
        ) from error
    return Sites(*find_blocks(model, captured, min_expansion))
