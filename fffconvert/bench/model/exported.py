"""The ONNX files of a dense model that ONNX Runtime and OpenVINO are measured with."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

from fffconvert.deploy.onnx import export_onnx


def write_onnx(model: Any, folder: Path, *, int8: bool) -> None:
    """Write `ort.onnx`, and `ort-int8.onnx` as ONNX Runtime's documentation has it for transformers.

    That is dynamic quantization with int8 weights; graphs are optimised when a session is made.

    Raises:
        FFFError: The model cannot be exported.
    """
    path = folder / "ort.onnx"
    export_onnx(model, path)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        logging.getLogger().setLevel(logging.ERROR)  # it logs a line for each tensor to the root
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_dynamic(path, folder / "ort-int8.onnx", weight_type=QuantType.QInt8)
