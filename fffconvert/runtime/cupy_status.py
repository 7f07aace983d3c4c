"""Whether the CUDA kernels can run here, and what exactly is missing if not."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
from functools import cache

import torch

from fffconvert.runtime.backend import Backend

DRIVERS = ("libcuda.so.1", "nvcuda.dll")
MAJORS = {"cupy-cuda12x": 12, "cupy-cuda13x": 13}
"""The CUDA that each of CuPy's distributions is built for."""


@cache
def status() -> Backend:
    """Look for the driver, a device, and a CuPy that fits; does not start CUDA if one of them is missing."""
    missing = _missing()
    if missing is not None:
        return Backend("cupy", False, missing)
    cupy = importlib.import_module("cupy")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Backend("cupy", True, f"CuPy {cupy.__version__} on {', '.join(names)}")


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
    fitting = [name for name, built in MAJORS.items() if built <= major]
    if not fitting:
        return f"the NVIDIA driver is for CUDA {major}.{minor}; update it to one for CUDA 12 or later"
    remedy = f"install fffconvert[{fitting[-1].removeprefix('cupy-').removesuffix('x')}]"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed; {remedy}"
    found = [name for name in MAJORS if _installed(name)]
    if len(found) > 1:
        return f"{' and '.join(found)} overwrite each other; uninstall both, then {remedy}"
    if found and found[0] not in fitting:
        needed = MAJORS[found[0]]
        return (
            f"{found[0]} needs a driver for CUDA {needed}, this one is for {major}.{minor}; "
            f"uninstall it, then {remedy}"
        )
    try:
        importlib.import_module("cupy")
    except ImportError as error:
        return f"CuPy cannot be imported ({str(error).strip().splitlines()[0]}); {remedy}"
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
