"""Small valid inputs for one forward pass of any transformers model.

What is made follows from the signature of the model's forward and from its config, parameter by
parameter; no model is known by name.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fffconvert.errors import FFFError
from fffconvert.location.inputs import audio, series, text, vision  # noqa: F401 (they register their makers)
from fffconvert.location.inputs.context import Context
from fffconvert.location.inputs.given import Inputs, keywords

__all__ = ["Inputs", "example_inputs", "inputs_for", "keywords"]


def inputs_for(model: nn.Module, given: Inputs | None, **sizes: int) -> dict[str, Any]:
    """The arguments of one forward pass by name: those given, or else those of `example_inputs`.

    Raises:
        FFFError: None can be guessed, or what was given is neither a tensor, a tuple nor a mapping.
    """
    return example_inputs(model, **sizes) if given is None else keywords(model, given)


def example_inputs(model: nn.Module, **sizes: int) -> dict[str, Any]:
    """Make keyword arguments for one forward pass: two short examples of every modality the model takes.

    The same model gets the same inputs: random tokens that are distinct and none of the special ones,
    standard normal images, waveforms and spectrograms, on the device and in the dtype of the model.

    Args:
        model: A transformers model.
        **sizes: `batch`, `length` and `decoder_length`, where other than short texts are wanted.

    Returns:
        Arguments by name, e.g. `input_ids: [2, 13]` and `attention_mask: [2, 13]`.

    Raises:
        FFFError: The model has no transformers config, or takes something that cannot be guessed.
    """
    if callable(inside := getattr(model, "get_base_model", None)):
        model = inside()  # an adapter of PEFT hands on whatever it gets
    config = getattr(model, "config", None)
    kind = type(model).__name__
    if not hasattr(config, "to_diff_dict"):
        raise FFFError(f"{kind} has no transformers config to guess its inputs from; pass example_inputs")
    context = Context(model, config, **sizes)
    for name in context.parameters:
        context.get(name)
    inputs = {name: value for name, value in context.inputs.items() if value is not None}
    empty = inspect.Parameter.empty
    missing = [n for n in context.required if n not in inputs and context.parameters[n].default is empty]
    if missing or not inputs:
        wanted = ", ".join(missing or context.parameters)
        raise FFFError(f"no example can be guessed for {wanted} of {kind}.forward; pass example_inputs")
    return inputs
