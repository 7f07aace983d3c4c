"""The ops `cmm`, `cmm_backward` and `cmm_inference`: schema, shapes, gradients.

One kernel for every device takes the arguments apart, holds them against the rules, and has the best backend
compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fffconvert.runtime import registration
from fffconvert.runtime.backend import Passed
from fffconvert.runtime.backends import choose
from fffconvert.runtime.rules import check_backward, check_forward, check_inference
from fffconvert.runtime.weights import Scales, Weights

_WEIGHTS = ", ".join(
    f"Tensor{'?' if name in Weights._field_defaults else ''} {name}" for name in Weights._fields
)
_SCALES = ", ".join(f"Tensor? {name}_scale" for name in Scales._fields)


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


registration.define(
    "cmm", f"(Tensor x, {_WEIGHTS}, str activation) -> (Tensor y, Tensor logits, Tensor leaf)"
)


def _forward_arguments(x: Tensor, *rest: Any) -> tuple[Tensor, Weights, str]:
    *tensors, activation = rest
    weights = Weights(*tensors)
    check_forward(x, weights, activation)
    return x, weights, activation


@registration.fake("cmm")
def _cmm_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weights, _ = _forward_arguments(*arguments)
    visits = (x.shape[0], weights.in_weight.shape[0])
    y = x.new_empty(x.shape[0], weights.out_weight.shape[2])
    logits = x.new_empty(*visits, weights.depth + 1, dtype=weights.compute_dtype(x))
    return y, logits, x.new_empty(visits, dtype=torch.int64)


@registration.kernel("cmm")
def _cmm(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weights, activation = _forward_arguments(*arguments)
    return choose("forward", x, weights).forward(x, weights, activation)


registration.define(
    "cmm_backward",
    f"(Tensor grad_y, Tensor grad_logits, Tensor x, {_WEIGHTS}, Tensor logits, Tensor leaf, "
    "str activation, bool rows) -> Tensor[]",
)


def _backward_arguments(
    grad_y: Tensor, grad_logits: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Passed, bool]:
    *tensors, logits, leaf, activation, rows = rest
    passed = Passed(x, Weights(*tensors), logits, leaf, activation)
    check_backward(grad_y, grad_logits, passed)
    return grad_y, grad_logits, passed, rows


@registration.fake("cmm_backward")
def _cmm_backward_fake(*arguments: Any) -> list[Tensor]:
    _, _, passed, rows = _backward_arguments(*arguments)
    like = (passed.x, *(passed.weights if rows else ()))
    return [tensor.new_empty(tensor.shape) for tensor in like if tensor is not None]


@registration.kernel("cmm_backward")
def _cmm_backward(*arguments: Any) -> list[Tensor]:
    grad_y, grad_logits, passed, rows = _backward_arguments(*arguments)
    return choose("backward", passed.x, passed.weights).backward(grad_y, grad_logits, passed, rows)


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


def _inference_arguments(x: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Weights, Scales, str]:
    *tensors, activation = rest
    count = len(Weights._fields)
    weights, scales = Weights(*tensors[:count]), Scales(*tensors[count:])
    check_inference(x, bias, weights, scales, activation)
    return x, bias, weights, scales, activation


@registration.fake("cmm_inference")
def _cmm_inference_fake(*arguments: Any) -> Tensor:
    x, _, weights, _, _ = _inference_arguments(*arguments)
    return x.new_empty(x.shape[0], weights.out_weight.shape[2])


@registration.kernel("cmm_inference")
def _cmm_inference(*arguments: Any) -> Tensor:
    x, bias, weights, scales, activation = _inference_arguments(*arguments)
    return choose("inference", x, weights, bias).inference(x, bias, weights, scales, activation)
