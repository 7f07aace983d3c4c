"""The ONNX files of a dense model that ONNX Runtime and OpenVINO are measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fffconvert.deploy.onnx import export_onnx, quantize_onnx


def write_onnx(model: Any, folder: Path, *, int8: bool) -> None:
    """Write `ort.onnx`, and with `int8` also `ort-int8.onnx`.

    Raises:
        FFFError: The model cannot be exported.
    """
    path = folder / "ort.onnx"
    export_onnx(model, path)
    if int8:
        quantize_onnx(path, folder / "ort-int8.onnx")
