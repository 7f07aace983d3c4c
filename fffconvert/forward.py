"""Forward passes of any model: in eval mode, and the tensors of what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode, without gradients and with a fixed seed; undo it afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        for module, training in modes:
            module.training = training


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested containers, in order (model outputs are mappings)."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
