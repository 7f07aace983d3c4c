"""`export`: a converted model as one file for another runtime."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

from torch import nn

from fffconvert import hub
from fffconvert.deployment.aot import export_aot
from fffconvert.deployment.layers import deploy_layers
from fffconvert.deployment.onnx import check_packages, export_onnx, quantize_onnx
from fffconvert.errors import FFFError
from fffconvert.options import ExportOptions, verb
from fffconvert.runtime import Inference
from fffconvert.surgery import layers_of


@verb(ExportOptions)
def export(model: nn.Module | str | Path, options: ExportOptions) -> Path:
    """Write a converted model as one file for another runtime.

    Args:
        model: A converted model, which is left as it was, or a converted folder.

    Returns:
        The file.

    Raises:
        FFFError: It is no converted model, or the runtime's exporter cannot follow it; nothing was written.
    """
    output, form, dtype = options.output, options.format, options.dtype
    quantize_linear, overwrite = options.quantize_linear, options.overwrite
    for file in (output, _data(output)):
        if file.exists() and not overwrite:
            raise FFFError(f"file {file} exists; choose another `output`, or add `overwrite=True`")
    if not output.resolve().parent.is_dir():
        raise FFFError(f"`output` is {output}: its folder does not exist; make it first")
    if form != "aot":
        check_packages(int8=quantize_linear == "int8")
    own = _exportable(model, options)
    deploy_layers(own, "reference", dtype, originals={})
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.resolve().parent) as temporary:
        path = Path(temporary) / output.name
        if form == "aot":
            export_aot(own, path, example_inputs=options.example_inputs)
        else:
            export_onnx(own, path, standard=form == "onnx-standard", example_inputs=options.example_inputs)
        if quantize_linear == "int8":
            quantized = Path(temporary) / "int8" / output.name
            quantized.parent.mkdir()
            quantize_onnx(path, quantized)
            path = quantized
        large = _data(path).exists()
        if large:  # the file that refers to the other comes last
            os.replace(_data(path), _data(output))
        os.replace(path, output)
        if not large:
            _data(output).unlink(missing_ok=True)  # of the model that was there before
    return output


def _exportable(model: nn.Module | str | Path, options: ExportOptions) -> nn.Module:
    """The model as it is stored, in float32: a copy of one in memory."""
    if isinstance(model, nn.Module):
        own = copy.deepcopy(model)
        for placed in layers_of(own).values():
            placed.layer.inference = Inference()
        return own.float()
    hub.check_converted(str(model), trust_remote_code=options.trust_remote_code)
    loaded = hub.load(str(model), trust_remote_code=options.trust_remote_code, deployed=False)
    stored: nn.Module = loaded.model.float()
    return stored


def _data(path: Path) -> Path:
    """Where the large weights of a file lie."""
    return path.with_name(f"{path.name}.data")
