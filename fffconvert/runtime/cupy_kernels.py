"""The CUDA kernels: their source, how it is compiled for one kind of operands, and how one is launched."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fffconvert.errors import FFFError

FOLDER = Path(__file__).parent / "kernels"
FILES = (
    "machine.cuh",
    "numbers.cuh",
    "activations.cuh",
    "rows.cuh",
    "token.cu",
    "walk.cu",
    "products.cu",
    "tensor.cu",
    "gradients.cu",
)
TYPES = {
    torch.float32: "float",
    torch.float16: "half16",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
}
"""What the kernels call the types that they know."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The types of tokens and biases, in the order of their numbers in the kernels."""
TILE, SUMS_OF_BLOCK, CHUNK, TENSOR_TILE = 16, 8, 128, 64
"""Tokens per block, in the several kernels, as they state it too."""
TOP_LEVELS = 6
"""Levels between two sorts of the tokens; 63 nodes fill a tile of tensor cores."""

_ROWS = np.dtype((np.void, 64))
_COMPILING = threading.Lock()

_X, _ROW, _ANY, _FLOAT, _LONG = "x", "row", "any", (torch.float32,), (torch.int64,)
_TENSORS: dict[str, tuple[str | tuple[torch.dtype, ...], ...]] = {
    "token_forward": (_X, _X, _FLOAT, _LONG, _ANY),
    "top_levels": (_X, _FLOAT, _LONG),
    "walk_tiles": (_X, _FLOAT, _LONG, _LONG),
    "dot_rows": (_X, _FLOAT, _LONG, _LONG),
    "dot_leaves": (_X, _FLOAT, _LONG, _LONG),
    "sum_rows": (_FLOAT, _X, _LONG, _LONG, _FLOAT, _FLOAT, _ANY),
    "sum_runs": (_X, _FLOAT, _LONG, _LONG, _ROW, _FLOAT, _FLOAT),
    "join_runs": (_LONG, _LONG, _ROW, _FLOAT, _FLOAT),
}
"""The types of the tensors that a kernel takes, in their order; absent ones count."""


class Build(NamedTuple):
    """What a compiled copy of the kernels is for.

    Attributes:
        x: Type of the tokens.
        row: Type of the rows.
        vector: Numbers that a thread takes at once, 16 bytes of a row; 1 where shapes do not allow it.
        tensor: Whether there are tensor cores for these types.
    """

    x: torch.dtype
    row: torch.dtype
    vector: int
    tensor: bool

    @property
    def options(self) -> tuple[str, ...]:
        """Options for the compiler."""
        return (
            "-std=c++17",
            f"-DFFF_X={TYPES[self.x]}",
            f"-DFFF_ROW={TYPES[self.row]}",
            f"-DFFF_VECTOR={self.vector}",
            f"-DFFF_TENSOR={int(self.tensor)}",
        )

    @property
    def source(self) -> str:
        """One text without includes, so that caches that go by it are right; int8 rows have no gradients."""
        names = FILES if self.row.is_floating_point else FILES[:-1]
        return "\n".join(f'#line 1 "{name}"\n{(FOLDER / name).read_text("utf-8")}' for name in names)


class Card(NamedTuple):
    """What launches have to know of a device.

    Attributes:
        capability: Compute capability, 80 for 8.0.
        shared_bytes: Shared memory that a block may take so that two fit on a multiprocessor.
    """

    capability: int
    shared_bytes: int


class _Stream(NamedTuple):
    """torch's stream, as CuPy asks for one."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address  # version of the protocol, and the stream


def build_for(x: Tensor, rows: Tensor, tensors: tuple[Tensor | None, ...]) -> Build:
    """Choose the copy of the kernels.

    Args:
        x: The tokens.
        rows: Some rows.
        tensors: All operands that are read or written several numbers at once, by their last axis.
    """
    vector = 16 // rows.element_size()
    aligned = all(t is None or (t.shape[-1] % vector == 0 and t.data_ptr() % 16 == 0) for t in tensors)
    same = x.dtype == rows.dtype or rows.dtype == torch.int8
    half = x.dtype in (torch.float16, torch.bfloat16)
    tensor = aligned and same and half and card(x.device).capability >= 80
    return Build(x.dtype, rows.dtype, vector if aligned else 1, tensor)


def sums_per_block(build: Build) -> int:
    """Tokens per block in `sum_rows`."""
    return SUMS_OF_BLOCK // 2 if build.vector == 16 else SUMS_OF_BLOCK


@cache
def card(device: torch.device) -> Card:
    """Look up a device."""
    described = _cupy().cuda.Device(device.index or 0)
    shared = int(described.attributes["MaxSharedMemoryPerBlockOptin"])
    return Card(int(described.compute_capability), shared // 2)


def rows_argument(
    weight: Tensor | None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    branches: int = 0,
    count: int = 1,
) -> np.ndarray[Any, Any]:
    """One weight as the kernels' `Rows`, passed by value.

    Args:
        weight: [T, ..., width], contiguous; None where the layer has no such weight.
        scale: [T, ...] in float32.
        bias: [T, ...]
        branches: Rows per node, or 0 for the rows of leaves.
        count: Rows that one token meets in one tree.
    """
    if weight is None:
        fields = [0] * 8
    else:
        if scale is not None and (scale.dtype != torch.float32 or scale.device != weight.device):
            raise FFFError(
                f"a scale is {scale.dtype} on {scale.device}; expected torch.float32 on {weight.device}: "
                "store the rows anew"
            )
        width = weight.shape[-1]
        per_tree = weight[0].numel() // width
        bias_type = 0 if bias is None else FLOATS.index(bias.dtype)
        fields = [pointer(weight), pointer(scale), pointer(bias), bias_type, width, per_tree, branches, count]
    return np.array(fields, dtype=np.int64).view(_ROWS)


def pointer(tensor: Tensor | None) -> int:
    """Where a tensor's first number is; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def launch(
    device: torch.device,
    build: Build,
    name: str,
    grid: tuple[int, ...],
    threads: int,
    arguments: tuple[Tensor | np.ndarray[Any, Any] | int | None, ...],
    shared: int = 0,
) -> None:
    """Put a kernel on torch's current stream of a device.

    Args:
        device: Where all tensors are.
        build: The copy of the kernels.
        name: Of the kernel.
        grid: Blocks along up to three axes.
        threads: Threads per block.
        arguments: Tensors (as pointers), `Rows`, and integers of 64 bits.
        shared: Dynamic shared memory, in bytes.
    """
    _check_tensors(device, build, name, arguments)
    values = tuple(pointer(a) if a is None or isinstance(a, Tensor) else a for a in arguments)
    cuda, index = _cupy().cuda, device.index or 0
    with cuda.Device(index), cuda.Stream.from_external(_Stream(_stream(device))):
        _kernel(index, build, name)(grid, (threads,), values, shared_mem=shared)


def _check_tensors(
    device: torch.device,
    build: Build,
    name: str,
    arguments: Sequence[Tensor | np.ndarray[Any, Any] | int | None],
) -> None:
    """Hold all tensors of a launch against what the kernel takes them for.

    Raises:
        FFFError: One is of another type or device, or has gaps.
    """
    wanted = {_X: (build.x,), _ROW: (build.row,), _ANY: FLOATS}
    tensors = [(i, a) for i, a in enumerate(arguments) if a is None or isinstance(a, Tensor)]
    for (i, tensor), kind in zip(tensors, _TENSORS[name], strict=True):
        dtypes = kind if isinstance(kind, tuple) else wanted[kind]
        if tensor is None or (
            tensor.dtype in dtypes
            and tensor.device == device
            and tensor.is_contiguous()
            and not tensor.is_neg()
        ):
            continue
        gaps = "" if tensor.is_contiguous() else " with gaps"
        raise FFFError(
            f"argument {i} of {name} is {tensor.dtype}{gaps} on {tensor.device}; expected "
            f"{' or '.join(map(str, dtypes))} without gaps on {device}: pass tensors of one layer's types"
        )


def _kernel(index: int, build: Build, name: str) -> Any:
    """Compile once, or take from CuPy's cache on disk; called with the device current."""
    with _COMPILING:
        return _compiled(index, build, name)


@cache
def _compiled(index: int, build: Build, name: str) -> Any:
    kernel = _module(index, build).get_function(name)
    if name in ("walk_tiles", "dot_rows"):
        kernel.max_dynamic_shared_size_bytes = card(torch.device("cuda", index)).shared_bytes
    return kernel


@cache
def _module(index: int, build: Build) -> Any:
    return _cupy().RawModule(code=build.source, options=build.options)


def _cupy() -> Any:
    return importlib.import_module("cupy")


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream
