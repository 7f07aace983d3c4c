"""Inputs that a user gives, as keyword arguments of one forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fffconvert.errors import FFFError

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""What a forward pass is given: the first argument, several in order, or arguments by name."""


def keywords(model: nn.Module, inputs: Any, what: str = "example_inputs") -> dict[str, Any]:
    """The arguments of a forward pass by name.

    Args:
        model: The model.
        inputs: A mapping as it is; a tensor or a tuple by the order of forward's parameters.
        what: What to call it in errors.

    Raises:
        FFFError: It is none of these, or forward's parameters have no names for it.
    """
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if not isinstance(inputs, Tensor | tuple | list):
        raise FFFError(
            f"{what} is a {type(inputs).__name__}; expected a tensor, a tuple of the arguments of one "
            "forward pass, or a mapping of them by name"
        )
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    signature, kind = inspect.signature(model.forward), type(model).__name__
    try:
        bound = signature.bind_partial(*given).arguments
    except TypeError:
        most = ", ".join(signature.parameters) or "nothing"
        raise FFFError(f"{what} holds {len(given)} arguments; {kind}.forward takes {most}") from None
    unnamed = {p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL} & bound.keys()
    main = getattr(model, "main_input_name", None)
    if unnamed and len(given) == 1 and isinstance(main, str):
        return {main: given[0]}
    if unnamed:
        raise FFFError(f"{kind}.forward names no arguments; give {what} as a mapping by name")
    return dict(bound)
