"""What every export does alike: example inputs, axes that may vary, how the trees compute meanwhile."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fffconvert.errors import FFFError
from fffconvert.forward import evaluation
from fffconvert.location.inputs import Inputs, inputs_for
from fffconvert.runtime import Inference
from fffconvert.runtime.int8_linear import Int8Linear
from fffconvert.tree import FFFLayer

TEXT = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask")
"""Inputs whose two axes are batch and length; of others only the batch may vary."""
_TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir", "torch._export", "torch._inductor")


def axes(name: str) -> dict[int, str]:
    """The axes of an input that may vary, by their names."""
    if name not in TEXT:
        return {0: "batch"}
    return {0: "batch", 1: "decoder_length" if name.startswith("decoder") else "length"}


@contextmanager
def exporting(model: nn.Module, example_inputs: Inputs | None) -> Iterator[dict[str, Tensor]]:
    """Prepare a model for export: evaluation, no cache of earlier tokens, silence. Undone afterwards.

    Yields:
        Keyword arguments of one forward pass.

    Raises:
        FFFError: Its linear layers are in int8 already, which no exporter can write.
    """
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise FFFError("the model's linear layers are in int8 already; export it before it is deployed")
    given = inputs_for(model, example_inputs, batch=2, length=16)
    with evaluation(model), _without_cache(model), _quiet():
        yield given


@contextmanager
def computing(model: nn.Module, backend: str) -> Iterator[None]:
    """Have the layers compute in one way ("auto" or "standard") in the body."""
    layers = [module for module in model.modules() if isinstance(module, FFFLayer)]
    before = [layer.inference for layer in layers]
    for layer in layers:
        layer.inference = Inference(backend, layer.inference.dtype)
    try:
        yield
    finally:
        for layer, inference in zip(layers, before, strict=True):
            layer.inference = inference


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say about other packages and their own progress."""
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
