"""Every instance of the kernels through NVIDIA's own compiler, and what it reports of each."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from runtime.cuda.emulation import TENSOR_KERNELS, kernel_names

from fffconvert.runtime import ACTIVATIONS, cupy_kernels
from fffconvert.runtime.cupy_kernels import FLOATS, TYPES, Build

ARCHITECTURES = (70, 80, 90)


def nvrtc_library() -> Path | None:
    """The compiler library of the test extra; CUDA 12, because CUDA 13 no longer knows sm_70."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.12")):
            return path
    return None


needs_nvrtc = pytest.mark.skipif(nvrtc_library() is None, reason="needs nvidia-cuda-nvrtc-cu12")


def instances(architecture: int) -> list[Build]:
    builds = []
    for x, row in itertools.product(FLOATS, TYPES):
        vector = 16 // row.itemsize
        tensor = architecture >= 80 and x.itemsize == 2 and row in (x, torch.int8)
        builds += [Build(x, row, vector, tensor), Build(x, row, 1, False)]
    return builds


@cache
def compiled(build: Build, architecture: int) -> tuple[str, str]:
    """The compiler's log, with ptxas's report, and the PTX."""
    nvrtc = ctypes.CDLL(str(nvrtc_library()))
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), build.source.encode(), b"", 0, None, None) == 0
    options = [*build.options, f"-arch=sm_{architecture}", "--ptxas-options=-v"]
    texts = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), texts)
    results = []
    for name in ("ProgramLog", "PTX"):
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{name}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{name}")(program, text)
        results.append(text.value.decode())
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    assert status == 0, results[0]
    return results[0], results[1]


def label(build: Build) -> str:
    return f"{TYPES[build.x]}-{TYPES[build.row]}-{build.vector}"


CASES = [(build, architecture) for architecture in ARCHITECTURES for build in instances(architecture)]


@needs_nvrtc
@pytest.mark.parametrize(
    ("build", "architecture"), CASES, ids=[f"{label(build)}-sm_{number}" for build, number in CASES]
)
def test_compiles_without_warning_spill_or_local_memory(build, architecture):
    log, ptx = compiled(build, architecture)
    # The compiler announces that it will drop old cards; everything else counts.
    warnings = [line for line in log.splitlines() if "warning" in line and "are deprecated" not in line]
    assert not warnings
    kernels = re.findall(r"Compiling entry function '(\w+)'", log)
    expected = kernel_names(build.source) - (set() if build.tensor else TENSOR_KERNELS)
    assert set(kernels) == expected
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert frames == [("0", "0", "0")] * len(kernels)
    assert ".local" not in ptx
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == len(kernels)
    assert max(registers) <= 128  # as many as let two blocks of 256 threads run beside each other


def body(ptx: str, kernel: str) -> str:
    return re.search(rf"\.entry {kernel}\(.*?^}}", ptx, re.DOTALL | re.MULTILINE)[0]


@needs_nvrtc
@pytest.mark.parametrize("build", [b for b in instances(80) if b.vector > 1], ids=label)
def test_rows_are_loaded_16_bytes_at_once(build):
    _, ptx = compiled(build, 80)
    for kernel in ("token_forward", "walk_tiles", "dot_rows", "sum_rows"):
        assert re.search(r"ld\.global\.nc\.v4\.\w32", body(ptx, kernel)), kernel
    if build.row.is_floating_point and build.x.itemsize >= build.row.itemsize:
        assert re.search(r"ld\.global\.nc\.v4\.\w32", body(ptx, "sum_runs"))
    if build.tensor:
        assert all("mma.sync.aligned.m16n8k16" in body(ptx, kernel) for kernel in TENSOR_KERNELS)
    assert "prefetch.global.L2" in body(ptx, "token_forward")
    assert "shfl.sync.bfly" in body(ptx, "walk_tiles")


def test_numbers_that_python_and_the_kernels_share_agree():
    source = Build(torch.float32, torch.float32, 4, False).source
    names = re.search(r"enum \{\s*GELU .*?\}", source, re.DOTALL)[0]
    assert dict(re.findall(r"(\w+) = (\d+)", names.lower())) == {
        name: str(activation.number) for name, activation in ACTIVATIONS.items()
    }
    assert f"CHUNK = {cupy_kernels.CHUNK};" in source
    tile = cupy_kernels.TENSOR_TILE
    assert f"TENSOR_TOKENS = {tile}, TENSOR_ROWS = {tile}," in source
    assert 2**cupy_kernels.TOP_LEVELS - 1 <= tile
    assert (
        f"SUMS = VECTOR == 16 ? {cupy_kernels.SUMS_OF_BLOCK // 2} : {cupy_kernels.SUMS_OF_BLOCK};" in source
    )
    group = int(re.search(r"GROUP = (\d+);", source)[1])
    assert group * 4 == cupy_kernels.TILE
    assert "TILE = 4 * GROUP;" in source
    assert "enum { FLOAT = 0, HALF = 1, BFLOAT = 2 };" in source
    assert FLOATS == (torch.float32, torch.float16, torch.bfloat16)


def test_every_file_is_part_of_the_source():
    assert {path.name for path in cupy_kernels.FOLDER.iterdir()} == set(cupy_kernels.FILES)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")
def test_nvcc_compiles_with_warnings_as_errors(tmp_path):
    build = Build(torch.bfloat16, torch.bfloat16, 8, True)
    text = tmp_path / "kernels.cu"
    text.write_text(build.source)
    command = ["nvcc", *build.options, "-arch=sm_80", "-Werror", "all-warnings", "-cubin", str(text)]
    done = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
