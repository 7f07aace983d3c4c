"""Where the native library lies, and its registration with ONNX Runtime. Nothing here needs torch."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from fffconvert.errors import FFFError

MISSING = "the native kernels were not built: install a C++ compiler (GCC or Clang) and reinstall fffconvert"
_NAME = {"darwin": "libfffcmm.dylib", "win32": "fffcmm.dll"}.get(sys.platform, "libfffcmm.so")


def library_path() -> Path | None:
    """The native library; None if it was not built."""
    beside = Path(__file__).parent / "runtime" / "native" / _NAME
    if beside.is_file():
        return beside
    try:  # an editable install keeps what it built apart from the sources
        installed = metadata.files("fffconvert") or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in installed if file.name == _NAME)
    return next((path for path in paths if path.is_file()), None)


def register_onnxruntime(session_options: Any) -> None:
    """Teach ONNX Runtime the operator `fffconvert::CMM`, for sessions made with these options.

    Args:
        session_options: An `onnxruntime.SessionOptions` of ONNX Runtime 1.17 or later.

    Raises:
        FFFError: The native library was not built.
    """
    path = library_path()
    if path is None:
        raise FFFError(f"{MISSING}; or export with `format=onnx-standard`, which any runtime reads")
    session_options.register_custom_ops_library(str(path))
