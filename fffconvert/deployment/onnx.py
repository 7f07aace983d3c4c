"""ONNX files: the trees as one custom operator of ONNX Runtime, or in standard operators for any runtime."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fffconvert.deployment.export_context import axes, computing, exporting
from fffconvert.deployment.outputs import MainOutput, main_output
from fffconvert.errors import FFFError, first_line
from fffconvert.location.inputs import Inputs
from fffconvert.runtime import ACTIVATIONS, VECTORS, Scales, Weights

DOMAIN, OPERATOR = "fffconvert", "CMM"
OPSET = 20
"""The first with a GELU of its own."""
LARGE = 1 << 30
"""Bytes of weights above which they go to a file of their own; a single file cannot hold 2 GiB."""


def check_packages(*, int8: bool = False) -> None:
    """Refuse an export without the packages that it needs.

    Raises:
        FFFError: One is missing.
    """
    for package, needed_by in (
        ("onnx", "the export"),
        ("onnxscript", "the export"),
        *([("onnxruntime", "`quantize_linear=int8`")] if int8 else ()),
    ):
        if find_spec(package) is None:
            raise FFFError(f"{needed_by} needs {package}: pip install 'fffconvert[deploy]'")


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    standard: bool = False,
    example_inputs: Inputs | None = None,
) -> None:
    """Write a model as ONNX, with weights in float32 and any batch and length of inputs.

    Args:
        model: A converted model (or any other), with plain linear layers; left as it was.
        path: File to write; large weights go to a file of the same name with `.data` behind.
        standard: Standard operators alone. Otherwise each FFF layer is one operator `fffconvert::CMM`, which
            ONNX Runtime knows after `fffconvert.register_onnxruntime(options)`.
        example_inputs: What one forward pass takes, where it cannot be guessed: tensor, tuple or mapping.

    Raises:
        FFFError: A package is missing, or the model cannot be exported.
    """
    check_packages()
    backend = "standard" if standard else "auto"
    with exporting(model, example_inputs) as inputs, computing(model, backend):
        name = main_output(model(**inputs))[0]
        try:
            program = torch.onnx.export(
                MainOutput(model, inputs),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={"inputs": tuple(map(axes, inputs))},
                input_names=list(inputs),
                output_names=[name],
                custom_translation_table=None if standard else {_op(): _translation()},
                verbose=False,
            )
        except Exception as error:  # whatever the exporter raises for a model that it cannot follow
            raise FFFError(
                f"{type(model).__name__} cannot be exported to ONNX: {first_line(error)}; try `format=aot`"
            ) from error
    assert program is not None, "asked for with dynamo"
    program.save(path, external_data=_bytes(model) > LARGE)


def _op() -> Any:
    return torch.ops.fffconvert.cmm_inference.default


def _translation() -> Any:
    """How the exporter writes the torch op: as the custom operator, with the same inputs."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    formal, optional = OpSchema.FormalParameter, OpSchema.FormalParameterOption.Optional
    required = {"x": "T", "bias": "V", "in_weight": "R", "in_bias": "V", "out_weight": "R"}
    further = {name: "V" if name in VECTORS else "R" for name in Weights._fields[3:]}
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
            ("T", ["tensor(float)"], "inputs and outputs"),
            ("V", ["tensor(float)"], "biases, thresholds and scales"),
            ("R", ["tensor(float)", "tensor(bfloat16)", "tensor(int8)"], "rows"),
        ],
        attributes=[OpSchema.Attribute("activation", OpSchema.AttrType.INT, required=True)],
    )
    operator = Op(Opset(DOMAIN, 1), OPERATOR, schema)

    def cmm(*arguments: Any) -> Any:
        *tensors, activation = arguments
        while tensors[-1] is None:
            del tensors[-1]
        return operator(*tensors, activation=ACTIVATIONS[activation].number)

    return cmm


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def quantize_onnx(path: Path, output: Path) -> None:
    """Quantize the linear layers of an ONNX file as ONNX Runtime's documentation has it for transformers.

    That is dynamic quantization with int8 weights. Trees, in either form, stay as they are.

    Args:
        path: File to read; its large weights may lie beside it.
        output: File to write; then its own lie beside it too, with `.data` behind the name.

    Raises:
        FFFError: ONNX Runtime is missing, or cannot do it.
    """
    check_packages(int8=True)
    # In a process of its own: it logs to the root logger, which is not ours to change.
    large = path.with_name(f"{path.name}.data").exists()
    command = [sys.executable, "-c", _QUANTIZE, str(path), str(output), "large" if large else ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise FFFError(f"ONNX Runtime cannot quantize {path.name}: {reason}; try `quantize_linear=none`")


_QUANTIZE = """
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic
path, output, large = sys.argv[1:]
options = {"op_types_to_quantize": ["MatMul", "Gemm"], "use_external_data_format": bool(large)}
quantize_dynamic(path, output, weight_type=QuantType.QInt8, **options)
"""
