"""The command `fffconvert export`: a converted folder as one file for another runtime."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fffconvert import hub
from fffconvert.deployment.aot import export_aot
from fffconvert.deployment.layers import deploy_layers
from fffconvert.deployment.linear import check_quantize_linear
from fffconvert.deployment.onnx import check_packages, export_onnx, quantize_onnx
from fffconvert.errors import FFFError

FORMATS = {"onnx": ".onnx", "onnx-standard": ".onnx", "aot": ".pt2"}


def export_folder(
    name: str,
    form: str,
    output: Path,
    *,
    dtype: str = "float32",
    quantize_linear: str = "none",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Export a converted model.

    Args:
        name: A converted folder.
        form: A key of `FORMATS`.
        output: File to write; large weights go beside it, to a file with `.data` behind the name.
        dtype: Row type of the trees.
        quantize_linear: "int8" or "none", for the linear layers beside the trees; ONNX alone.
        overwrite: Replace an existing file.
        trust_remote_code: Run code that the model brings along.

    Returns:
        The file.

    Raises:
        FFFError: It is no converted model, or the runtime's exporter cannot follow it; nothing was written.
    """
    check_quantize_linear(quantize_linear)
    if form not in FORMATS:
        raise FFFError(f"--format is {form!r}; expected one of {', '.join(FORMATS)}")
    if output.suffix != FORMATS[form]:
        raise FFFError(f"-o {output}: expected a name that ends in {FORMATS[form]} for --format {form}")
    if form == "aot" and quantize_linear == "int8":
        raise FFFError("--format aot knows no int8 linear layers; expected --quantize-linear none")
    for file in (output, _data(output)):
        if file.exists() and not overwrite:
            raise FFFError(f"file {file} exists; choose another -o, or add --overwrite")
    if not output.resolve().parent.is_dir():
        raise FFFError(f"-o {output}: its folder does not exist; make it first")
    if form != "aot":
        check_packages(int8=quantize_linear == "int8")
    hub.check_converted(name, trust_remote_code=trust_remote_code)
    model = hub.load(name, trust_remote_code=trust_remote_code, deployed=False).model.float()
    deploy_layers(model, "reference", dtype, originals={})
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.resolve().parent) as temporary:
        path = Path(temporary) / output.name
        if form == "aot":
            export_aot(model, path)
        else:
            export_onnx(model, path, standard=form == "onnx-standard")
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


def _data(path: Path) -> Path:
    """Where the large weights of a file lie."""
    return path.with_name(f"{path.name}.data")
