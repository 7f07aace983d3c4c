"""Record one small run of a model, on the meta device where it has no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fffconvert.errors import FFFError
from fffconvert.estimation.anatomy import Anatomy
from fffconvert.estimation.dissection import Sizes, dissect
from fffconvert.estimation.workload import Stream
from fffconvert.location import Sites
from fffconvert.location.capturing import Capture, capture
from fffconvert.location.inputs import Inputs, example_inputs, inputs_for
from fffconvert.location.match import find_blocks
from fffconvert.private_names import TorchDispatchMode

TEXT = Sizes(batch=3, length=13, decoder_length=11)
CONTENT = {"input_ids", "decoder_input_ids", "pixel_values", "input_features", "input_values"}
"""Names under which transformers' models take what they read."""
BESIDE_OTHER = Sizes(batch=3, length=31, decoder_length=29)
"""For text beside images or sound, of which there are many rows."""


def record(model: nn.Module, given: Inputs | None = None) -> Anatomy:
    """Record a small run and take it apart.

    Args:
        model: Any module, of real weights or on the meta device; left as it was.
        given: What one forward pass takes, where it cannot be guessed, as a tensor, a tuple or a mapping:
            `TEXT.batch` sequences of `TEXT.length` tokens.

    Raises:
        FFFError: The model does not run on the inputs, or has no feedforward block.
    """
    sizes = TEXT
    inputs = inputs_for(model, given, **asdict(sizes))
    if given is None:
        if len({"input_ids", "decoder_input_ids"} & set(inputs)) < len(CONTENT & set(inputs)):
            sizes = BESIDE_OTHER
            inputs = example_inputs(model, **asdict(sizes))
        sizes = Sizes(
            next(iter(inputs.values())).shape[0],
            sizes.length if "input_ids" in inputs else 0,
            sizes.decoder_length if "decoder_input_ids" in inputs else 0,
        )
    captured = _capture(model, inputs)
    sites = Sites(*find_blocks(model, captured, 1.0))
    return dissect(model, captured, sites, sizes, _generates(model, inputs))


def _capture(model: nn.Module, inputs: Mapping[str, Any]) -> Capture:
    try:
        with weightless(model):
            return capture(model, inputs)
    except Exception as error:  # whatever a foreign forward raises
        raise FFFError(
            f"the model does not run on the example inputs ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}); pass example_inputs, the arguments of one forward pass"
        ) from error


@contextmanager
def weightless(model: nn.Module) -> Iterator[None]:
    """Let a model on the meta device run; one with weights is left as it is.

    Where its code asks for a value, that is 1 (nothing is padding). Experts are computed as batched products,
    whose shapes do not depend on where the router sends the tokens.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        yield
        return
    before = model.get_experts_implementation() if isinstance(model, PreTrainedModel) else {}
    if isinstance(model, PreTrainedModel):
        model.set_experts_implementation("batched_mm")
    try:
        with _Ones():  # type: ignore[no-untyped-call]
            yield
    finally:
        if isinstance(model, PreTrainedModel):
            model.set_experts_implementation(before)


class _Ones(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        return func(*args, **kwargs or {})


def _generates(model: nn.Module, inputs: Mapping[str, Any]) -> Stream | None:
    """The stream that grows token by token when the model generates."""
    if "decoder_input_ids" in inputs:
        return Stream.DECODER
    can_generate = getattr(model, "can_generate", None)
    if "input_ids" in inputs and callable(can_generate) and can_generate():
        return Stream.TOKEN
    return None
