"""The ops on CPUs, by native kernels that are called through ctypes with data pointers.

Gradients of leaf blocks are plain torch's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fffconvert.errors import FFFError
from fffconvert.native import MISSING, library_path
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.backend import Operation, Passed, Status, Support
from fffconvert.runtime.leaves import leaf_backward
from fffconvert.runtime.weights import VECTORS, Scales, Weights

NAME = "cpu"
INSTRUCTION_SET = "FFFCONVERT_INSTRUCTION_SET"
"""Environment variable that forces one of the library's instruction sets."""

_ROW_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
IO_TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Types of inputs that the kernels take."""
SUPPORT = Support("cpu", tuple(IO_TYPES), tuple(_ROW_TYPES))
_TREES = Weights._fields[: Weights._fields.index("leaf_in_weight")]
"""The weights that belong to the trees; the others belong to the leaf blocks."""
_GRADIENTS = ("x", *_TREES)


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("scale", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    """`fff_layer` of native/cmm.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("trees", "depth", "branches", "leaf_width", "d_in", "d_out")),
        ("activation", ctypes.c_int64),
        ("row_type", ctypes.c_int64),
        *((name, ctypes.c_void_p if name in VECTORS else _Rows) for name in Weights._fields),
        ("bias", ctypes.c_void_p),
    ]


class _Gradients(ctypes.Structure):
    """`fff_gradients` of native/cmm.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in _GRADIENTS]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native library, or None if it was not built.

    Raises:
        FFFError: The environment asks for an instruction set that is not to be had.
    """
    path = library_path()
    if path is None:
        return None
    lib = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    lib.fff_forward.argtypes = [
        pointer, pointer, number, number, pointer, number, pointer, pointer, number
    ]  # fmt: skip
    lib.fff_backward.argtypes = [*[pointer] * 4, number, *[pointer] * 3, number]
    lib.fff_forward.restype = lib.fff_backward.restype = lib.fff_set_gomp_parallel.restype = None
    lib.fff_instruction_sets.restype = lib.fff_instruction_set.restype = ctypes.c_char_p
    lib.fff_set_gomp_parallel.argtypes = [pointer]
    lib.fff_set_gomp_parallel(_gomp_parallel())
    if wanted := os.environ.get(INSTRUCTION_SET):
        _use(lib, wanted)
    return lib


def instruction_sets() -> list[str]:
    """Instruction sets that the library has and the processor runs, best first; empty without a library."""
    lib = library()
    return [] if lib is None else lib.fff_instruction_sets().decode().split()


def instruction_set() -> str | None:
    """The instruction set whose kernels run; None without a library."""
    lib = library()
    return None if lib is None else str(lib.fff_instruction_set().decode())


def status() -> Status:
    """As `Backend.status`; says on which instruction set the kernels run."""
    if library() is None:
        return Status(False, f"{MISSING}; the reference is used")
    others = ", ".join(instruction_sets())
    return Status(True, f"native kernels for {instruction_set()} (of {others}; {INSTRUCTION_SET} forces one)")


def use_instruction_set(name: str) -> None:
    """Run the kernels of this instruction set from now on.

    Raises:
        FFFError: It is not to be had.
    """
    lib = library()
    if lib is None:
        raise FFFError(MISSING)
    _use(lib, name)


def _use(lib: ctypes.CDLL, name: str) -> None:
    if lib.fff_use_instruction_set(name.encode()):
        found = lib.fff_instruction_sets().decode().replace(" ", ", ")
        raise FFFError(f"no native kernels for {name!r} run here; expected one of {found}")


def _gomp_parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch runs on, so that there is one pool."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    loaded = {
        line.split()[-1] for line in maps.read_text().splitlines() if re.search(r"/lib(g|i)?omp[^/]*$", line)
    }
    for path in sorted(loaded, key=lambda path: "torch" not in path):
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def why_not(operation: Operation, x: Tensor, weights: Weights, bias: Tensor | None = None) -> str | None:
    """As `Backend.why_not`; warns once if it is for want of the library."""
    reason = SUPPORT.why_not(operation, x, weights)
    if reason is None and operation == "backward" and not x.dtype == weights.in_weight.dtype == torch.float32:
        reason = "its gradients are of torch.float32 alone"
    return reason or _missing()


def _missing() -> str | None:
    """What is to be done where there is no library; a warning says it once."""
    if library() is not None:
        return None
    _warn_missing()
    return MISSING


@functools.cache
def _warn_missing() -> None:
    warnings.warn(f"{MISSING}; until then plain torch computes, which is several times slower", stacklevel=2)


def address(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int], row_stride: int | None = None
) -> int:
    """Where a tensor lies that native code reads or writes. All pointers for native code come from here.

    Args:
        name: What it is called in errors.
        tensor: Any.
        dtype: Type that the code takes it for.
        shape: Shape that the code takes it for.
        row_stride: Numbers between the rows of a matrix; None where it lies without gaps.

    Raises:
        FFFError: It is another kind of tensor than the code takes it for.
    """
    fits = (
        tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.shape == shape
        and (tensor.is_contiguous() if row_stride is None else tensor.stride() == (row_stride, 1))
        and not tensor.is_neg()
    )
    pointer = tensor.data_ptr() if fits else 0
    if not pointer and not (fits and tensor.numel() == 0):
        raise FFFError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, "
            f"{tensor.layout}{'' if fits else ', perhaps with gaps'}; expected {dtype} {list(shape)} in "
            "memory of the CPU, without gaps: pass contiguous tensors of this type"
        )
    return pointer


class PreparedLayer:
    """The weights of one layer as the library takes them; holds them while it lives.

    Rows are read where they lie, so changes in place show; what lies otherwise than the library takes it is
    copied.

    Attributes:
        copied: Whether anything was, as are biases that are not float32.

    Args:
        bias: [d_out], or None.
        weights: The trees.
        scales: What int8 rows are multiplied by.
        activation: A key of `ACTIVATIONS`.
    """

    def __init__(self, bias: Tensor | None, weights: Weights, scales: Scales, activation: str) -> None:
        lib = library()
        assert lib is not None, "asked `takes` first"
        self._forward, self._backward = lib.fff_forward, lib.fff_backward
        self._kept: list[Tensor] = []
        self.copied = False
        self._shapes, self._levels = weights.shapes, weights.depth + 1
        self._trees = len(weights.in_weight)
        self._d_in, self._d_out = weights.in_weight.shape[2], weights.out_weight.shape[2]
        self._square = self._d_in == self._d_out
        layer = self._layer = _Layer(
            trees=self._trees,
            depth=weights.depth,
            branches=weights.branches,
            leaf_width=0 if weights.leaf_out_weight is None else weights.leaf_out_weight.shape[2],
            d_in=self._d_in,
            d_out=self._d_out,
            activation=ACTIVATIONS[activation].number,
            row_type=_ROW_TYPES[weights.in_weight.dtype],
            bias=self._pointer("bias", bias, torch.float32, (self._d_out,)),
        )
        for name, tensor in weights._asdict().items():
            shape = self._shapes[name]
            if name in VECTORS:
                setattr(layer, name, self._pointer(name, tensor, torch.float32, shape))
            else:
                scale = self._pointer(f"{name}_scale", getattr(scales, name), torch.float32, shape[:-1])
                data = self._pointer(name, tensor, weights.in_weight.dtype, shape)
                setattr(layer, name, _Rows(data, scale))
        self._address = ctypes.addressof(layer)

    def _pointer(
        self, name: str, tensor: Tensor | None, dtype: torch.dtype, shape: Sequence[int]
    ) -> int | None:
        if tensor is None:
            return None
        own = tensor.detach().to(dtype).resolve_neg().contiguous()
        self.copied |= own.data_ptr() != tensor.data_ptr()
        self._kept.append(own)
        return address(name, own, dtype, shape)

    def takes(self, x: Tensor) -> bool:
        """Whether x lies on the CPU and has a type and width that fit."""
        return x.is_cpu and x.dtype in IO_TYPES and x.size(-1) == self._d_in

    def __call__(self, x: Tensor, logits: Tensor | None = None, leaf: Tensor | None = None) -> Tensor:
        """Compute y: [..., d_out] from x: [..., d_in]; fill `logits` and `leaf` where they are given."""
        stride, dtype = None, x.dtype
        if not x.is_contiguous():
            if x.dim() == 2 and x.stride(1) == 1:
                stride = x.stride(0)
            else:
                x = x.contiguous()
        shape, tokens = (*x.shape[:-1], self._d_out), x.numel() // self._d_in
        y = torch.empty_like(x) if self._square and stride is None else x.new_empty(shape)
        visits = (tokens, self._trees)
        self._forward(
            self._address,
            address("x", x, dtype, (*x.shape[:-1], self._d_in), stride),
            self._d_in if stride is None else stride,
            tokens,
            address("y", y, dtype, shape),
            IO_TYPES[dtype],
            None if logits is None else address("logits", logits, torch.float32, (*visits, self._levels)),
            None if leaf is None else address("leaf", leaf, torch.int64, visits),
            torch.get_num_threads(),
        )
        return y

    def backward(
        self, grad_y: Tensor, grad_logits: Tensor, passed: Passed, gradients: Mapping[str, Tensor | None]
    ) -> None:
        """Write the gradient of x, and add to those of the weights that are given, along the paths taken.

        Raises:
            FFFError: There is no such leaf, or a tensor is not what the library takes it for.
        """
        x, _, logits, leaf, _ = passed
        tokens, leaves = len(x), self._shapes["leaf_constant"][1]
        if tokens and not 0 <= leaf.min() <= leaf.max() < leaves:
            raise FFFError(f"leaf is {int(leaf.min())} to {int(leaf.max())}; expected 0 to {leaves - 1}")
        visits = (tokens, self._trees)
        found = {"x": (tokens, self._d_in), **self._shapes}
        given = {name: grad for name in _GRADIENTS if (grad := gradients.get(name)) is not None}
        results = _Gradients(
            **{n: address(f"gradient of {n}", grad, torch.float32, found[n]) for n, grad in given.items()}
        )
        self._backward(
            self._address,
            address("grad_y", grad_y, torch.float32, (tokens, self._d_out)),
            address("grad_logits", grad_logits, torch.float32, (*visits, self._levels)),
            address("x", x, torch.float32, (tokens, self._d_in)),
            tokens,
            address("logits", logits, torch.float32, (*visits, self._levels)),
            address("leaf", leaf, torch.int64, visits),
            ctypes.addressof(results),
            torch.get_num_threads(),
        )


def forward(x: Tensor, weights: Weights, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """As `Backend.forward`."""
    visits = (x.shape[0], weights.in_weight.shape[0])
    logits = x.new_empty(*visits, weights.depth + 1, dtype=torch.float32)
    leaf = x.new_empty(visits, dtype=torch.int64)
    y = PreparedLayer(None, weights, Scales(), activation)(x, logits, leaf)
    return y, logits, leaf


def inference(x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> Tensor:
    """As `Backend.inference`."""
    return PreparedLayer(bias, weights, scales, activation)(x)


def prepare(bias: Tensor, weights: Weights, scales: Scales, activation: str) -> PreparedLayer | None:
    """As `Backend.prepare`."""
    on_cpu = all(tensor is None or tensor.is_cpu for tensor in (bias, *weights))
    if not on_cpu or weights.in_weight.dtype not in _ROW_TYPES or _missing():
        return None
    return PreparedLayer(bias, weights, scales, activation)


def backward(grad_y: Tensor, grad_logits: Tensor, passed: Passed, rows: bool = True) -> list[Tensor]:
    """As `Backend.backward`."""
    grad_y, grad_logits, x, logits = (
        tensor.float().contiguous() for tensor in (grad_y, grad_logits, passed.x, passed.logits)
    )
    weights, leaf = passed.weights, passed.leaf.contiguous()
    grad_x = x.new_empty(x.shape)
    grads = Weights._make(None if w is None else w.new_zeros(w.shape) for w in weights) if rows else None
    results = {"x": grad_x, **(grads._asdict() if grads is not None else {})}
    trees = Weights(**{name: getattr(weights, name) for name in _TREES})
    passed = Passed(x, weights, logits, leaf, passed.activation)
    PreparedLayer(None, trees, Scales(), passed.activation).backward(grad_y, grad_logits, passed, results)
    leaf_backward(grad_y, passed, grad_x, grads)
    return [grad_x, *(grad for grad in grads or () if grad is not None)]
