from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace

import pytest
import torch

from fffconvert.runtime import cupy_status
from fffconvert.runtime.backends import named

EVERYTHING = {
    "driver": 12040,
    "torch": "12.8",
    "devices": 1,
    "cupy": True,
    "installed": ["cupy-cuda12x"],
    "error": None,
    "version": "14.2.0",
    "compiler": True,
}
CASES = {
    "no driver": ({"driver": None}, "no NVIDIA driver found; install one, or use another backend"),
    "torch for the CPU": ({"torch": None}, "is built without CUDA; install a CUDA build of torch"),
    "no device": ({"devices": 0}, "shows no device; check nvidia-smi and CUDA_VISIBLE_DEVICES"),
    "old torch": ({"torch": "11.8"}, "torch is built for CUDA 11.8; install one for CUDA 12 or 13"),
    "no CuPy": ({"cupy": False, "installed": []}, r"not installed; install fffconvert\[cuda12\]$"),
    "no CuPy, new torch": (
        {"cupy": False, "installed": [], "driver": 13020, "torch": "13.0"},
        r"not installed; install fffconvert\[cuda13\]$",
    ),
    "CuPy too new": (
        {"installed": ["cupy-cuda13x"]},
        r"^cupy-cuda13x needs a driver for CUDA 13, this one is for 12.4; uninstall it, then install "
        r"fffconvert\[cuda12\], or update the driver$",
    ),
    "old CuPy": (
        {"version": "13.6.0"},
        r"CuPy is 13.6.0; expected 14 or later: install fffconvert\[cuda12\]$",
    ),
    "no compiler": (
        {"compiler": False},
        r"finds no compiler \(no libnvrtc\); install its extra, as in cupy-cuda12x\[ctk\]$",
    ),
    "two of them": (
        {"installed": ["cupy-cuda12x", "cupy-cuda13x"]},
        "cupy-cuda12x and cupy-cuda13x overwrite each other; uninstall both",
    ),
    "broken CuPy": ({"error": "libcudart.so.12: cannot open"}, r"cannot be imported \(libcudart.so.12: can"),
}


@pytest.fixture
def machine(monkeypatch):
    """Describes a machine to the code under test."""

    def describe(**changes):
        given = EVERYTHING | changes

        def get_version():
            if not given["compiler"]:
                raise RuntimeError("no libnvrtc\nanywhere")

        nvrtc = SimpleNamespace(getVersion=get_version)

        def load(name):
            if given["error"]:
                raise ImportError(given["error"] + "\nand more")
            return SimpleNamespace(__version__=given["version"], cuda=SimpleNamespace(nvrtc=nvrtc))

        monkeypatch.setattr(cupy_status, "driver_version", lambda: given["driver"])
        monkeypatch.setattr(torch.version, "cuda", given["torch"])
        monkeypatch.setattr(torch.cuda, "device_count", lambda: given["devices"])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: given["cupy"] or None)
        monkeypatch.setattr(importlib, "import_module", load)
        monkeypatch.setattr(cupy_status, "_installed", lambda name: name in given["installed"])
        return cupy_status.status()

    cupy_status.status.cache_clear()
    yield describe
    cupy_status.status.cache_clear()


@pytest.mark.parametrize(("changes", "message"), CASES.values(), ids=CASES)
def test_says_what_is_missing_and_the_remedy(machine, changes, message):
    backend = machine(**changes)
    assert not backend.available
    assert "\n" not in backend.reason
    assert re.search(message, backend.reason)


@pytest.mark.parametrize(
    "changes", [{}, {"driver": 13000}, {"installed": []}, {"driver": 13000, "installed": ["cupy-cuda13x"]}]
)
def test_available(machine, changes):
    backend = machine(**changes, devices=2)
    assert backend.available
    assert backend.reason == "CuPy 14.2.0 on Card 0, Card 1"


def test_info_lists_it():
    assert named("cupy").status() is cupy_status.status()


def test_the_driver_is_asked_without_starting_cuda(monkeypatch):
    class Library:
        def cuDriverGetVersion(self, version):
            version._obj.value = 12040
            return 0

    def load(name):
        if name != "nvcuda.dll":
            raise OSError(name)
        return Library()

    monkeypatch.setattr(cupy_status.ctypes, "CDLL", load)
    assert cupy_status.driver_version() == 12040
    monkeypatch.setattr(cupy_status, "DRIVERS", ("libcuda.so.1",))
    assert cupy_status.driver_version() is None
