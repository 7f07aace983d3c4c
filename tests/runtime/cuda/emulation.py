"""A stand-in for CuPy that checks launches as a GPU would, and runs the kernels' own source on the CPU."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fffconvert.runtime import cupy_kernels

HERE = Path(__file__).parent
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
FOLDER = Path(tempfile.gettempdir()) / f"fffconvert-emulation-{RUN}"
"""Where the processes of one run of the tests keep what any of them compiled."""


def _compiler() -> str | None:
    """A compiler that knows half precision."""
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            command = [name, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
            probe = "#include <ucontext.h>\nfloat f(_Float16 x) { return x; }"
            if subprocess.run(command, input=probe, text=True, capture_output=True).returncode == 0:
                return name
    return None


COMPILER = _compiler()
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="needs a C++ compiler that knows _Float16, as GCC 12 and Clang 15 do"
)
SANITIZED = os.environ.get("FFF_SANITIZE") == "1"
if not SANITIZED:  # that is an inner run, which shares the folder
    atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
TENSOR_KERNELS = {"top_levels", "dot_leaves"}
LIMITS = (2**31 - 1, 65535, 65535)


def kernel_names(source: str | None = None) -> set[str]:
    """The kernels in a source; in all of it, if none is given."""
    if source is None:
        source = "".join(path.read_text("utf-8") for path in sorted(cupy_kernels.FOLDER.glob("*.cu")))
    return set(
        re.findall(r"^extern \"C\" __global__ void __launch_bounds__\(.*?\)\s+(\w+)\(", source, re.MULTILINE)
    )


@lru_cache
def compiled(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
    machine = (cupy_kernels.FOLDER / "machine.cuh").read_text("utf-8")
    assert machine in source
    source = source.replace(machine, (HERE / "emulation.h").read_text("utf-8"))
    if "FFF_PLANT" in os.environ:
        correct, wrong = os.environ["FFF_PLANT"].split("|")
        assert correct in source
        source = source.replace(correct, wrong)
    names = kernel_names(source)
    if "-DFFF_TENSOR=0" in options:
        names -= TENSOR_KERNELS
    cases = "".join(
        f'  if (!strcmp(name, "{n}")) return emulation::launch({n}, arguments, grid, block, shared, seed);\n'
        for n in sorted(names)
    )
    source += (
        '\nextern "C" const char* run(const char* name, void** arguments, const unsigned* grid,\n'
        "                           const unsigned* block, size_t shared, unsigned seed) {\n"
        f'{cases}  return "no such kernel";\n}}\n'
    )
    digest = hashlib.sha256(f"{options}{source}".encode()).hexdigest()[:16]
    library = FOLDER / f"{digest}{'-sanitized' * SANITIZED}.so"
    if not library.exists():
        FOLDER.mkdir(exist_ok=True)
        made = FOLDER / f"{digest}.{os.getpid()}"
        made.with_suffix(".cpp").write_text(source)
        flags = ["-O1", "-shared", "-fPIC", "-fno-strict-aliasing"]
        flags += ["-fsanitize=address", "-g"] if SANITIZED else []
        command = [COMPILER, *options, *flags, str(made.with_suffix(".cpp")), "-o", str(made)]
        subprocess.run(command, check=True)
        made.replace(library)
    run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_char_p
    return run


class StandIn:
    """As much of CuPy as the launch code uses.

    Attributes:
        launches: The names of the kernels launched, in order.
        capability: Of every device.
        shared: Shared memory that a block may opt in to, in bytes.
        seed: The order in which threads run.
        stream: What torch's current stream is said to be.
        dry: Whether launches are only checked, and run nothing.
    """

    def __init__(self, capability: str = "80", shared: int = 163 << 10, seed: int = 0) -> None:
        self.launches: list[str] = []
        self.capability, self.shared, self.seed, self.stream = capability, shared, seed, 1234
        self.entered: list[object] = []
        self.modules = 0
        self.dry = False
        self.edit = lambda source: source
        stream = SimpleNamespace(from_external=self._from_external)
        self.cuda = SimpleNamespace(Device=self._device, Stream=stream)

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> SimpleNamespace:
        self.modules += 1
        return SimpleNamespace(get_function=lambda name: Kernel(self, name, self.edit(code), options))

    def _device(self, index: int) -> Context:
        attributes = {"MaxSharedMemoryPerBlockOptin": self.shared}
        return Context(self, ("device", index), attributes=attributes, compute_capability=self.capability)

    def _from_external(self, stream: object) -> Context:
        version, address = stream.__cuda_stream__()
        assert version == 0
        return Context(self, ("stream", address))


@contextmanager
def installed() -> Iterator[StandIn]:
    """Lets the launch code work on CPU tensors: the emulation in CuPy's place, a number for the stream."""
    stand_in = StandIn()
    caches = (cupy_kernels.card, cupy_kernels._compiled, cupy_kernels._module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy_kernels, "_cupy", lambda: stand_in)
        patch.setattr(cupy_kernels, "_stream", lambda device: stand_in.stream)
        for cache in caches:
            cache.cache_clear()
        yield stand_in
        for cache in caches:
            cache.cache_clear()


class Context(SimpleNamespace):
    def __init__(self, owner: StandIn, what: tuple[object, ...], **attributes: object) -> None:
        super().__init__(owner=owner, what=what, **attributes)

    def __enter__(self) -> None:
        self.owner.entered.append(self.what)

    def __exit__(self, *_: object) -> None:
        assert self.owner.entered.pop() == self.what


class Kernel:
    """A compiled kernel, whose launches are checked before they run."""

    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, owner: StandIn, name: str, source: str, options: tuple[str, ...]) -> None:
        self.owner, self.name = owner, name
        self.run = compiled(source, options)
        found = re.search(rf"__launch_bounds__\((\d+), \d+\)\s+{name}\((.*?)\)\s*{{", source, re.DOTALL)
        assert found is not None
        self.threads = int(found[1])
        self.parameters = [" ".join(parameter.split()) for parameter in found[2].split(",")]

    def __call__(self, grid, block, args, *, shared_mem=0) -> None:
        assert self.owner.entered == [("device", 0), ("stream", self.owner.stream)]
        grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        assert all(1 <= size <= limit for size, limit in zip(grid, LIMITS, strict=True)), (self.name, grid)
        assert block[0] % 32 == 0
        assert 0 < block[0] <= self.threads
        assert 0 <= shared_mem <= self.max_dynamic_shared_size_bytes <= self.owner.shared
        assert len(args) == len(self.parameters), self.name
        values = [self._value(p, a) for p, a in zip(self.parameters, args, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        self.owner.launches.append(self.name)
        if self.owner.dry:
            return
        sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
        failure = self.run(
            self.name.encode(), pointers, *sizes, ctypes.c_size_t(shared_mem), ctypes.c_uint(self.owner.seed)
        )
        assert failure is None, f"{self.name}: {failure.decode()}"

    def _value(self, parameter: str, argument: object) -> np.ndarray:
        """An argument in memory, as CuPy hands it over: integers of 64 bits, arrays of size 1 by value."""
        if parameter.startswith("Rows "):
            assert isinstance(argument, np.ndarray)
            assert argument.size == 1
            assert argument.nbytes == 64
            return argument
        assert type(argument) is int, (self.name, parameter, argument)
        if "*" not in parameter:
            assert parameter.startswith("index_t ")
        return np.array([argument], dtype=np.int64)
