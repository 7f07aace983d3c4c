"""The ops `cmm`, `cmm_backward` and `cmm_inference`: schema, argument rules, shapes, default kernel.

The reference is the default kernel on every device; a native kernel overrides it on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fffconvert.runtime import reference, registration
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.weights import VECTORS, Scales, Weights

_WEIGHTS = (
    "Tensor in_weight, Tensor in_bias, Tensor out_weight, Tensor? leaf_constant, "
    "Tensor? leaf_in_weight, Tensor? leaf_in_bias, Tensor? leaf_gate_weight, Tensor? leaf_gate_bias, "
    "Tensor? leaf_out_weight, Tensor? leaf_threshold"
)
_SCALES = ", ".join(f"Tensor? {name}_scale" for name in Scales._fields)
_PLAIN = ["leaf_in_weight", "leaf_in_bias", "leaf_out_weight"]
_GATED = ["leaf_in_weight", "leaf_in_bias", "leaf_gate_weight", "leaf_gate_bias", "leaf_out_weight"]


def cmm(x: Tensor, weights: Weights, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply conditionally: each token meets the nodes of one path of each tree.

    Differentiable once, through `y` and `logits`; the decisions themselves have no gradient.

    Args:
        x: [tokens, d_in]
        weights: The trees; they may be of another dtype than `x` (as under autocast).
        activation: A key of `ACTIVATIONS`.

    Returns:
        y: [tokens, d_out] in the dtype of `x`.
        logits: [tokens, T, D + 1], s at the visited nodes; float32, or float64 if an operand is.
        leaf: [tokens, T], the leaf reached, int64.

    Raises:
        RuntimeError: Shapes or dtypes do not fit, or the activation is unknown.

    Reference: arXiv 2311.10770, section 3.
    """
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.fffconvert.cmm(x, *weights, activation)
    return result


def cmm_inference(x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> Tensor:
    """Multiply conditionally and return the outputs alone; not differentiable.

    Args:
        x: [tokens, d_in]
        bias: [d_out], added to every output.
        weights: The trees; rows (and constants) of one dtype, biases in floating point.
        scales: With int8 rows, what each is multiplied by; empty otherwise.
        activation: A key of `ACTIVATIONS`.

    Returns:
        [tokens, d_out] in the dtype of `x`.

    Raises:
        RuntimeError: Shapes or dtypes do not fit, or the activation is unknown.
    """
    y: Tensor = torch.ops.fffconvert.cmm_inference(x, bias, *weights, *scales, activation)
    return y


def check_arguments(x: Tensor, weights: Weights, activation: str) -> None:
    """Hold the arguments of `cmm` against the op's rules; every kernel starts with this.

    Raises:
        RuntimeError: A rule is broken; the message says what was found and what was expected.
    """
    dtypes = sorted({str(tensor.dtype) for tensor in weights if tensor is not None})
    _rule(
        len(dtypes) == 1 and weights.in_weight.is_floating_point() and x.is_floating_point(),
        lambda: f"x is {x.dtype}, weights are {', '.join(dtypes)}; expected one floating point dtype each",
    )
    _check_structure(weights, activation)
    _check_tokens(x, weights)


def check_inference_arguments(
    x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str
) -> None:
    """Hold the arguments of `cmm_inference` against the op's rules; every kernel starts with this.

    Raises:
        RuntimeError: A rule is broken; the message says what was found and what was expected.
    """
    check_layer(bias, weights, scales, activation)
    _rule(x.is_floating_point(), lambda: f"x is {x.dtype}; expected floating point")
    _check_tokens(x, weights)


def check_layer(bias: Tensor, weights: Weights, scales: Scales, activation: str) -> None:
    """Hold all arguments of `cmm_inference` but the tokens against the op's rules.

    Raises:
        RuntimeError: A rule is broken; the message says what was found and what was expected.
    """
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


def check_backward_arguments(
    grad_y: Tensor,
    grad_logits: Tensor,
    x: Tensor,
    weights: Weights,
    logits: Tensor,
    leaf: Tensor,
    activation: str,
) -> None:
    """Hold the arguments of `cmm_backward` against the op's rules; every kernel starts with this.

    Raises:
        RuntimeError: A rule is broken; the message says what was found and what was expected.
    """
    check_arguments(x, weights, activation)
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


def shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The shape that each field of the weights must have beside the input and output rows there are."""
    trees, nodes, d_in = weights.in_weight.shape
    rows, d_out = weights.out_weight.shape[1:]
    leaves = nodes + 1
    width = weights.leaf_out_weight.shape[2] if weights.leaf_out_weight is not None else 0
    return {
        "in_weight": (trees, nodes, d_in),
        "in_bias": (trees, nodes),
        "out_weight": (trees, 2 * nodes if rows == 2 * nodes else nodes, d_out),
        "leaf_constant": (trees, leaves, d_out),
        "leaf_in_weight": (trees, leaves, width, d_in),
        "leaf_in_bias": (trees, leaves, width),
        "leaf_gate_weight": (trees, leaves, width, d_in),
        "leaf_gate_bias": (trees, leaves, width),
        "leaf_out_weight": (trees, leaves, width, d_out),
        "leaf_threshold": (trees, leaves, width),
    }


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
    for name, shape in shapes(weights).items():
        if name in tensors:
            _check_shape(name, tensors[name], str(list(shape)), tensors[name].shape == shape)


def _check_shape(name: str, tensor: Tensor, expected: str, fits: bool) -> None:
    _rule(fits, lambda: f"{name} is {list(tensor.shape)}; expected {expected}")


def _rule(holds: bool, message: Callable[[], str]) -> None:
    torch._check(holds, lambda: f"fffconvert::cmm: {message()}")  # type: ignore[no-untyped-call]


registration.define(
    "cmm", f"(Tensor x, {_WEIGHTS}, str activation) -> (Tensor y, Tensor logits, Tensor leaf)"
)


@registration.fake("cmm")
def _cmm_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, activation = rest
    weights = Weights(*tensors)
    check_arguments(x, weights, activation)
    visits = (x.shape[0], weights.in_weight.shape[0])
    y = x.new_empty(x.shape[0], weights.out_weight.shape[2])
    logits = x.new_empty(*visits, weights.depth + 1, dtype=weights.compute_dtype(x))
    return y, logits, x.new_empty(visits, dtype=torch.int64)


@registration.kernel("cmm", "default")
def _cmm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, activation = rest
    weights = Weights(*tensors)
    check_arguments(x, weights, activation)
    with torch.autocast(x.device.type, enabled=False):
        return reference.forward(x, weights, activation)


registration.define(
    "cmm_backward",
    f"(Tensor grad_y, Tensor grad_logits, Tensor x, {_WEIGHTS}, Tensor logits, Tensor leaf, "
    "str activation, bool rows) -> Tensor[]",
)


@registration.fake("cmm_backward")
def _cmm_backward_fake(grad_y: Tensor, grad_logits: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    *tensors, logits, leaf, activation, rows = rest
    weights = Weights(*tensors)
    check_backward_arguments(grad_y, grad_logits, x, weights, logits, leaf, activation)
    return [
        tensor.new_empty(tensor.shape) for tensor in (x, *(weights if rows else ())) if tensor is not None
    ]


@registration.kernel("cmm_backward", "default")
def _cmm_backward(grad_y: Tensor, grad_logits: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    *tensors, logits, leaf, activation, rows = rest
    weights = Weights(*tensors)
    check_backward_arguments(grad_y, grad_logits, x, weights, logits, leaf, activation)
    with torch.autocast(x.device.type, enabled=False):
        return reference.backward(grad_y, grad_logits, x, weights, logits, leaf, activation, rows=rows)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.activation = inputs
    _, logits, leaf = output
    ctx.save_for_backward(*tensors, logits, leaf)


def _differentiate(ctx: Any, grad_y: Tensor, grad_logits: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, *weights, logits, leaf = ctx.saved_tensors
    arguments = (grad_y, grad_logits, x, *weights, logits, leaf, ctx.activation)
    return *gradients(arguments, weights, ctx.needs_input_grad[1:]), None


def gradients(
    arguments: tuple[Any, ...], weights: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of x and of each of the weights, by `cmm_backward`; only that of x for frozen weights.

    Args:
        arguments: Those of the op, but the last.
        weights: The fields of `Weights`.
        wanted: For each of them whether its gradient is asked for.
    """
    rows = any(wanted[: len(weights)])
    first, *others = torch.ops.fffconvert.cmm_backward(*arguments, rows)
    rest = iter(others)
    return [first, *(next(rest) if rows and weight is not None else None for weight in weights)]


registration.autograd("cmm", _differentiate, _save)


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("cmm can be differentiated only once")


registration.autograd("cmm_backward", _refuse)


registration.define(
    "cmm_inference", f"(Tensor x, Tensor bias, {_WEIGHTS}, {_SCALES}, str activation) -> Tensor"
)


def split_inference_arguments(arguments: tuple[Any, ...]) -> tuple[Weights, Scales, str]:
    """Take the arguments of `cmm_inference` after x and bias apart."""
    *tensors, activation = arguments
    count = len(Weights._fields)
    return Weights(*tensors[:count]), Scales(*tensors[count:]), activation


@registration.fake("cmm_inference")
def _cmm_inference_fake(x: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    weights, scales, activation = split_inference_arguments(rest)
    check_inference_arguments(x, bias, weights, scales, activation)
    return x.new_empty(x.shape[0], weights.out_weight.shape[2])


@registration.kernel("cmm_inference", "default")
def _cmm_inference(x: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    weights, scales, activation = split_inference_arguments(rest)
    check_inference_arguments(x, bias, weights, scales, activation)
    with torch.autocast(x.device.type, enabled=False):
        return reference.inference(x, bias, weights, scales, activation)
