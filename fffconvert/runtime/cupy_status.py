"""Whether the CUDA kernels can run here, and what exactly is missing if not."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
from functools import cache

import torch

from fffconvert.errors import first_line
from fffconvert.runtime.backend import Status

DRIVERS = ("libcuda.so.1", "nvcuda.dll")
MAJORS = {"cupy-cuda12x": 12, "cupy-cuda13x": 13}
"""The CUDA that each of CuPy's distributions is built for."""
OLDEST = 14
"""The oldest CuPy whose interface is used."""


@cache
def status() -> Status:
    """Look for the driver, a device, and a CuPy that fits; does not start CUDA if one of them is missing."""
    missing = _missing()
    if missing is not None:
        return Status(False, missing)
    cupy = importlib.import_module("cupy")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Status(True, f"CuPy {cupy.__version__} on {', '.join(names)}")


def _missing() -> str | None:
    """The first thing that is missing, and the remedy."""
    driver = driver_version()
    if driver is None:
        return "no NVIDIA driver found; install one, or use another backend"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
    if torch.cuda.device_count() == 0:
        return "the NVIDIA driver shows no device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    major, minor = divmod(driver // 10, 100)
    # CuPy compiles with the NVRTC that torch brings, so it should be for torch's CUDA.
    wanted = int(torch.version.cuda.partition(".")[0])
    remedy = f"install fffconvert[cuda{wanted}]"
    if wanted not in MAJORS.values():
        return f"torch is built for CUDA {torch.version.cuda}; install one for CUDA 12 or 13"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed; {remedy}"
    found = [name for name in MAJORS if _installed(name)]
    if len(found) > 1:
        return f"{' and '.join(found)} overwrite each other; uninstall both, then {remedy}"
    if found and MAJORS[found[0]] > major:
        needed = MAJORS[found[0]]
        return (
            f"{found[0]} needs a driver for CUDA {needed}, this one is for {major}.{minor}; "
            f"uninstall it, then {remedy}, or update the driver"
        )
    return _unusable(remedy)


def _unusable(remedy: str) -> str | None:
    """Why the CuPy that is installed cannot compile and launch, and the remedy."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return f"CuPy cannot be imported ({first_line(error)}); {remedy}"
    if int(cupy.__version__.partition(".")[0]) < OLDEST:
        return f"CuPy is {cupy.__version__}; expected {OLDEST} or later: {remedy}"
    try:
        cupy.cuda.nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        return f"CuPy finds no compiler ({first_line(error)}); install its extra, as in cupy-cuda12x[ctk]"
    return None


def driver_version() -> int | None:
    """The newest CUDA that the driver knows, 12040 for 12.4; None without a driver."""
    for name in DRIVERS:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value
    return None


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
