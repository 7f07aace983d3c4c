"""The registry of the ops' implementations; another one is a module like `Backend`, and its place here."""

from __future__ import annotations

from torch import Tensor

from fffconvert.runtime import cpu, cuda, reference
from fffconvert.runtime.backend import Backend, Operation
from fffconvert.runtime.weights import Weights

BACKENDS: tuple[Backend, ...] = (reference, cpu, cuda)
"""Of those that can compute something, the last one does."""


def on_device(device: str) -> dict[str, Backend]:
    """Those for a type of device by name, whether they can run here or not; the best one last."""
    return {found.NAME: found for found in BACKENDS if found.SUPPORT.device in (None, device)}


def named(name: str) -> Backend | None:
    """The one of this name."""
    return next((found for found in BACKENDS if found.NAME == name), None)


def choose(operation: Operation, x: Tensor, weights: Weights, bias: Tensor | None = None) -> Backend:
    """The one that computes this if nobody insists on another; arguments as of `Backend.why_not`."""
    device = x.device.type
    for found in reversed(BACKENDS):
        # The device is asked first, because reasons take time to word.
        if found.SUPPORT.device in (None, device) and found.why_not(operation, x, weights, bias) is None:
            return found
    return reference
