"""The ONNX files that ONNX Runtime and OpenVINO are measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fffconvert.deployment.onnx import export_onnx, quantize_onnx


def write_onnx(model: Any, folder: Path, name: str, *, int8: bool) -> None:
    """Write NAME.onnx, and with `int8` also NAME-int8.onnx.

    Raises:
        FFFError: The model cannot be exported.
    """
    path = folder / f"{name}.onnx"
    export_onnx(model, path)
    if int8:
        quantize_onnx(path, folder / f"{name}-int8.onnx")
