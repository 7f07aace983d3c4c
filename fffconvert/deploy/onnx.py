"""ONNX files: the trees as one custom operator of ONNX Runtime, or in standard operators for any runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.deploy.outputs import MainOutput, main_output
from fffconvert.errors import FFFError, first_line
from fffconvert.locate.capture import evaluation
from fffconvert.locate.inputs import example_inputs as default_inputs
from fffconvert.runtime import ACTIVATIONS, Inference, Scales, Weights
from fffconvert.tree import FFFLayer

DOMAIN, OPERATOR = "fffconvert", "CMM"
OPSET = 20
"""The first with a GELU of its own."""
TEXT = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask")
"""Inputs whose two axes are batch and length; of others only the batch may vary."""


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    standard: bool = False,
    example_inputs: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model as ONNX, with weights in float32 and any batch and length of inputs.

    Args:
        model: A converted model (or any other), with plain linear maps; left as it was.
        path: File to write; large weights go to a file of the same name with `.data` behind.
        standard: Standard operators alone. Otherwise each FFF layer is one operator `fffconvert::CMM`, which
            ONNX Runtime knows after `fffconvert.register_onnxruntime(options)`.
        example_inputs: Keyword arguments of one forward pass, where they cannot be guessed.

    Raises:
        FFFError: A package is missing, or the model cannot be exported.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise FFFError(f"the export needs {package}: pip install 'fffconvert[deploy]'")
    inputs = dict(default_inputs(model, batch=2, length=16) if example_inputs is None else example_inputs)
    with evaluation(model), _without_cache(model), _computing(model, standard), _quiet():
        name = main_output(model(**inputs))[0]
        try:
            program = torch.onnx.export(
                MainOutput(model, inputs),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={"inputs": tuple(map(_axes, inputs))},
                input_names=list(inputs),
                output_names=[name],
                custom_translation_table=None if standard else {_op(): _translation()},
                verbose=False,
            )
        except Exception as error:  # whatever the exporter raises for a model that it cannot follow
            raise FFFError(
                f"{type(model).__name__} cannot be exported to ONNX: {first_line(error)}; try --format aot"
            ) from error
    assert program is not None, "asked for with dynamo"
    program.save(path, external_data=_bytes(model) > 1 << 30)


def _axes(name: str) -> dict[int, Any]:
    batch = {0: "batch"}
    if name.startswith("decoder"):
        return batch | {1: "decoder_length"}
    return batch | {1: "length"} if name in TEXT else batch


def _op() -> Any:
    return torch.ops.fffconvert.cmm_inference.default


def _translation() -> Any:
    """How the exporter writes the torch op: as the custom operator, with the same inputs."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    formal, optional = OpSchema.FormalParameter, OpSchema.FormalParameterOption.Optional
    required = {"x": "T", "bias": "V", "in_weight": "R", "in_bias": "V", "out_weight": "R"}
    further = {name: "V" if name.endswith("bias") else "R" for name in Weights._fields[3:]}
    further |= {f"{name}_scale": "V" for name in Scales._fields}
    schema = OpSchema(
        OPERATOR,
        DOMAIN,
        1,
        inputs=[
            *(formal(name, kind) for name, kind in required.items()),
            *(formal(name, kind, param_option=optional) for name, kind in further.items()),
        ],
        outputs=[formal("y", "T")],
        type_constraints=[
            ("T", ["tensor(float)", "tensor(bfloat16)"], "activations"),
            ("V", ["tensor(float)"], "biases and scales"),
            ("R", ["tensor(float)", "tensor(bfloat16)", "tensor(int8)"], "rows"),
        ],
        attributes=[OpSchema.Attribute("activation", OpSchema.AttrType.INT, required=True)],
    )
    operator = Op(Opset(DOMAIN, 1), OPERATOR, schema)

    def cmm(*arguments: Any) -> Any:
        *tensors, activation = arguments
        while tensors[-1] is None:
            del tensors[-1]
        return operator(*tensors, activation=list(ACTIVATIONS).index(activation))

    return cmm


@contextmanager
def _computing(model: nn.Module, standard: bool) -> Iterator[None]:
    """Have the layers compute through the op, or in standard operators, in the body."""
    layers = [module for module in model.modules() if isinstance(module, FFFLayer)]
    before = [layer.inference for layer in layers]
    for layer in layers:
        layer.inference = Inference("standard" if standard else "auto", layer.inference.dtype)
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
    """Without what the exporter says about other packages and its own progress."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
