"""Models compiled ahead of time by torch (AOTInductor): one file that starts without tracing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fffconvert.deployment.export_context import axes, computing, exporting
from fffconvert.deployment.outputs import MainOutput
from fffconvert.errors import FFFError, first_line
from fffconvert.location.inputs import Inputs


def export_aot(model: nn.Module, path: str | Path, *, example_inputs: Inputs | None = None) -> None:
    """Compile a model for this machine's processor and write it as a package (`.pt2`).

    `torch._inductor.aoti_load_package(path)` loads it in a process that has imported `fffconvert.runtime`,
    where the op `fffconvert::cmm_inference` comes from. It takes the model's inputs in their order and
    returns the main output.

    Args:
        model: A converted model, with plain linear layers; left as it was.
        path: File to write, ending in `.pt2`.
        example_inputs: What one forward pass takes, where it cannot be guessed: tensor, tuple or mapping.

    Raises:
        FFFError: There is no compiler, or the model cannot be exported.
    """
    from fffconvert.private_names import aoti_compile_and_package  # torch's compiler takes long to import

    with exporting(model, example_inputs) as inputs, computing(model, "auto"):
        try:
            program = torch.export.export(
                MainOutput(model, inputs),
                tuple(inputs.values()),
                dynamic_shapes={"inputs": tuple({axis: _AUTO for axis in axes(name)} for name in inputs)},
                strict=False,
            )
            aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:  # whatever the exporter and the compiler raise
            raise FFFError(
                f"{type(model).__name__} cannot be compiled ahead of time: {first_line(error)}; "
                "try `format=onnx`"
            ) from error


_AUTO: Any = torch.export.Dim.AUTO
