"""The one output of a model that matters: logits where there are any, else the last hidden state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fffconvert.forward import tensors_in


def main_output(output: Any) -> tuple[str, Tensor]:
    """The name ("logits" or "hidden_state") and the tensor of a model's main output."""
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return "logits", output["logits"]
    tensors = tensors_in(output)
    return "hidden_state", next(t for t in tensors if t.is_floating_point() and t.dim() > 1)


class MainOutput(nn.Module):
    """A model that takes its inputs in order and returns its main output alone, as exporters want it.

    Args:
        model: Any model of transformers.
        names: Its inputs, in the order in which they are given.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the model."""
        return main_output(self.model(**dict(zip(self.names, inputs, strict=True))))[1]
