"""What the arguments of the ops must fit; a RuntimeError says what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.backend import Passed
from fffconvert.runtime.weights import VECTORS, Scales, Weights

_PLAIN = ["leaf_in_weight", "leaf_in_bias", "leaf_out_weight"]
_GATED = ["leaf_in_weight", "leaf_in_bias", "leaf_gate_weight", "leaf_gate_bias", "leaf_out_weight"]


def check_forward(x: Tensor, weights: Weights, activation: str) -> None:
    """Hold the arguments of `cmm` against the op's rules."""
    dtypes = sorted({str(tensor.dtype) for tensor in weights if tensor is not None})
    _rule(
        len(dtypes) == 1 and weights.in_weight.is_floating_point() and x.is_floating_point(),
        lambda: f"x is {x.dtype}, weights are {', '.join(dtypes)}; expected one floating point dtype each",
    )
    _check_structure(weights, activation)
    _check_tokens(x, weights)


def check_inference(x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> None:
    """Hold the arguments of `cmm_inference` against the op's rules."""
    check_layer(bias, weights, scales, activation)
    _rule(x.is_floating_point(), lambda: f"x is {x.dtype}; expected floating point")
    _check_tokens(x, weights)


def check_layer(bias: Tensor, weights: Weights, scales: Scales, activation: str) -> None:
    """Hold all arguments of `cmm_inference` but the tokens against the op's rules."""
    rows = {name: getattr(weights, name) for name in Scales._fields if getattr(weights, name) is not None}
    vectors = {name: getattr(weights, name) for name in VECTORS if getattr(weights, name) is not None}
    dtypes = sorted({str(tensor.dtype) for tensor in rows.values()})
    integer = weights.in_weight.dtype == torch.int8
    _rule(
        len(dtypes) == 1 and (integer or weights.in_weight.is_floating_point()),
        lambda: f"rows are {', '.join(dtypes)}; expected one floating point dtype, or int8",
    )
    _rule(
        all(tensor.is_floating_point() for tensor in (bias, *vectors.values())),
        lambda: f"bias is {bias.dtype}; expected floating point, and so for all vectors",
    )
    _check_structure(weights, activation)
    d_out = weights.out_weight.shape[2]
    _check_shape("bias", bias, f"[{d_out}]", bias.shape == (d_out,))
    for name, scale in scales._asdict().items():
        _check_scale(name, scale, rows[name] if integer and name in rows else None)


def check_backward(grad_y: Tensor, grad_logits: Tensor, passed: Passed) -> None:
    """Hold the arguments of `cmm_backward` against the op's rules."""
    x, weights, logits, leaf, activation = passed
    check_forward(x, weights, activation)
    visits = (x.shape[0], weights.in_weight.shape[0])
    levels = (*visits, weights.depth + 1)
    _check_shape("leaf", leaf, f"{list(visits)} in int64", leaf.shape == visits and leaf.dtype == torch.int64)
    floating = {
        "grad_y": (grad_y, (x.shape[0], weights.out_weight.shape[2])),
        "grad_logits": (grad_logits, levels),
        "logits": (logits, levels),
    }
    for name, (tensor, shape) in floating.items():
        fits = tensor.shape == shape and tensor.is_floating_point()
        _check_shape(name, tensor, f"{list(shape)} in floating point", fits)


def _check_scale(name: str, scale: Tensor | None, rows: Tensor | None) -> None:
    """Hold a scale against the int8 rows that it belongs to."""
    _rule(
        (scale is None) == (rows is None),
        lambda: (
            f"{name}_scale is {'missing' if scale is None else 'given'}; "
            "expected one scale for each row of int8 weights, and none with other dtypes"
        ),
    )
    if scale is not None and rows is not None:
        shape = rows.shape[:-1]
        fits = scale.shape == shape and scale.dtype == torch.float32
        _check_shape(f"{name}_scale", scale, f"{list(shape)} in float32", fits)


def _check_tokens(x: Tensor, weights: Weights) -> None:
    d_in = weights.in_weight.shape[2]
    _check_shape("x", x, f"[tokens, {d_in}]", x.dim() == 2 and x.shape[1] == d_in)


def _check_structure(weights: Weights, activation: str) -> None:
    """Hold shapes against one another."""
    _rule(activation in ACTIVATIONS, lambda: f"unknown activation {activation!r}")
    tensors = {name: tensor for name, tensor in weights._asdict().items() if tensor is not None}
    block = [name for name in tensors if name in _GATED]
    _rule(
        block in ([], _PLAIN, _GATED),
        lambda: f"leaf blocks have only {', '.join(block)}; expected {', '.join(_PLAIN)}, or the gate's too",
    )
    _rule(
        "leaf_threshold" not in tensors or bool(block),
        lambda: "there are leaf_threshold and no leaf blocks; expected both, or neither",
    )
    for name, rank in (("in_weight", 3), ("out_weight", 3), ("leaf_out_weight", 4)):
        if name in tensors:
            _check_shape(name, tensors[name], f"{rank} axes", tensors[name].dim() == rank)
    trees, nodes, d_in = weights.in_weight.shape
    complete = trees > 0 and d_in > 0 and nodes > 0 and nodes & (nodes + 1) == 0
    _check_shape("in_weight", weights.in_weight, "[T, 2^(D + 1) - 1, d_in]", complete)
    for name, shape in weights.shapes.items():
        if name in tensors:
            _check_shape(name, tensors[name], str(list(shape)), tensors[name].shape == shape)


def _check_shape(name: str, tensor: Tensor, expected: str, fits: bool) -> None:
    _rule(fits, lambda: f"{name} is {list(tensor.shape)}; expected {expected}")


def _rule(holds: bool, message: Callable[[], str]) -> None:
    if not holds:
        raise RuntimeError(f"fffconvert::cmm: {message()}")
