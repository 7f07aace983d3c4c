"""The ops on NVIDIA GPUs: kernels where they cover the operands, the reference elsewhere."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from fffconvert.runtime import ops, reference
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.cupy_kernels import FLOATS, TYPES
from fffconvert.runtime.cupy_status import status
from fffconvert.runtime.cupy_steps import (
    BIASES,
    Layer,
    Term,
    dot,
    fits_one_block,
    layer_for,
    row_gradients,
    sort_by_leaf,
    sum_terms,
    token_forward,
    walk,
)
from fffconvert.runtime.registration import kernel
from fffconvert.runtime.weights import Scales, Weights

FEW_TOKENS = 1024
"""Up to so many tokens, a block takes each of them through the layer. By counting bytes, not measured."""
LARGEST = 65535
"""Limit of the second and third axis of a grid."""


def register() -> None:
    """Make the kernels the implementation of the ops for CUDA tensors, if torch has CUDA and CuPy is there.

    Whether a device is there too is asked when the first op comes, so that importing does not start CUDA.
    """
    if torch.version.cuda is None or importlib.util.find_spec("cupy") is None:
        return
    kernel("cmm", "cuda")(_cmm)
    kernel("cmm_backward", "cuda")(_cmm_backward)
    kernel("cmm_inference", "cuda")(_cmm_inference)


def covers(x: Tensor, weights: Weights, bias: Tensor | None = None) -> bool:
    """Whether the kernels know the types and sizes.

    Args:
        x: [tokens, d_in]
        weights: The trees.
        bias: [d_out]
    """
    tensors = {"x": x, "bias": bias, **weights._asdict()}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    width = 0 if weights.leaf_in_weight is None else weights.leaf_in_weight.shape[2]
    return (
        x.dtype in FLOATS
        and weights.in_weight.dtype in TYPES
        and all(tensor.dtype in FLOATS for name, tensor in given.items() if name.endswith("bias"))
        and weights.leaf_threshold is None
        and all(tensor.numel() > 0 and tensor.device == x.device for tensor in given.values())
        and max(len(weights.in_weight), width) <= LARGEST
    )


def forward(x: Tensor, weights: Weights, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.forward`, for operands that `covers` accepts."""
    x = x.contiguous()
    layer = layer_for(x, weights, Scales(), activation)
    y = x.new_empty(len(x), layer.width("out_weight"))
    if len(x) <= FEW_TOKENS and fits_one_block(layer):
        logits = x.new_empty(len(x), layer.trees, layer.levels, dtype=torch.float32)
        leaf = x.new_empty(len(x), layer.trees, dtype=torch.int64)
        token_forward(x, y, logits, leaf, None, layer)
    else:
        logits, leaf = _tile_forward(x, y, None, layer)
    return y, logits, leaf


def inference(x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> Tensor:
    """As `reference.inference`, for operands that `covers` accepts."""
    x, bias = x.contiguous(), bias.contiguous()
    layer = layer_for(x, weights, scales, activation)
    y = x.new_empty(len(x), len(bias))
    if len(x) <= FEW_TOKENS and fits_one_block(layer):
        token_forward(x, y, None, None, bias, layer)
    else:
        _tile_forward(x, y, bias, layer)
    return y


def backward(
    grad_y: Tensor,
    grad_logits: Tensor,
    x: Tensor,
    weights: Weights,
    logits: Tensor,
    leaf: Tensor,
    activation: str,
    *,
    rows: bool = True,
) -> list[Tensor]:
    """As `reference.backward`, for operands that `covers` accepts. The same to the bit in every run."""
    x, grad_y, leaf = x.contiguous(), grad_y.to(x.dtype).contiguous(), leaf.contiguous()
    layer, act = layer_for(x, weights, Scales(), activation, grad_y), ACTIVATIONS[activation]
    order = sort_by_leaf(leaf)
    grad_s = grad_logits + act.derivative(logits) * dot(grad_y, "out_weight", order, leaf, layer)
    # For each weight: what its rows were multiplied with, or receive, and by which factors.
    parts: dict[str, tuple[Tensor, Tensor | None]] = {
        "in_weight": (x, grad_s),
        "out_weight": (grad_y, act.fn(logits)),
    }
    if weights.leaf_constant is not None:
        parts["leaf_constant"] = (grad_y, None)
    if weights.leaf_block is not None:
        up = dot(x, "leaf_in_weight", order, leaf, layer)
        hidden, grad_hidden = act.fn(up), dot(grad_y, "leaf_out_weight", order, leaf, layer)
        grad_up = grad_hidden * act.derivative(up)
        if weights.leaf_block.gate is not None:
            gate = dot(x, "leaf_gate_weight", order, leaf, layer)
            parts["leaf_gate_weight"] = (x, grad_hidden * hidden)
            hidden, grad_up = hidden * gate, grad_up * gate
        parts |= {"leaf_in_weight": (x, grad_up), "leaf_out_weight": (grad_y, hidden)}

    grad_x = torch.empty_like(x)
    terms = [Term(name, factor) for name, (vectors, factor) in parts.items() if vectors is x]
    sum_terms(grad_x, terms, order, leaf, None, layer)
    if not rows:
        return [grad_x]
    given = {name: weight for name, weight in weights._asdict().items() if weight is not None}
    grads = {name: x.new_zeros(weight.shape, dtype=weight.dtype) for name, weight in given.items()}
    for name, (vectors, factor) in parts.items():
        factor = None if factor is None else factor.contiguous()
        bias = grads[BIASES[name]].float() if name in BIASES else None
        row_gradients(grads[name], bias, vectors, factor, name, order, leaf, layer)
        if bias is not None:
            grads[BIASES[name]].copy_(bias)
    return [grad_x, *grads.values()]


def _tile_forward(x: Tensor, y: Tensor, bias: Tensor | None, layer: Layer) -> tuple[Tensor, Tensor]:
    """Write `y`, with launches that share rows among tokens; return logits and leaves."""
    logits, leaf, order = walk(x, layer)
    terms = [Term("out_weight", logits, layer.activation)]
    if layer.count("leaf_constant"):
        terms.append(Term("leaf_constant"))
    if layer.count("leaf_in_weight"):
        up = dot(x, "leaf_in_weight", order, leaf, layer)
        gated = layer.count("leaf_gate_weight") > 0
        gate = dot(x, "leaf_gate_weight", order, leaf, layer) if gated else None
        terms.append(Term("leaf_out_weight", up, layer.activation, gate))
    sum_terms(y, terms, order, leaf, bias, layer)
    return logits, leaf


def _cmm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, activation = rest
    weights = Weights(*tensors)
    ops.check_arguments(x, weights, activation)
    run = forward if status().available and covers(x, weights) else reference.forward
    with torch.autocast(x.device.type, enabled=False):
        return run(x, weights, activation)


def _cmm_backward(grad_y: Tensor, grad_logits: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    *tensors, logits, leaf, activation, rows = rest
    weights = Weights(*tensors)
    ops.check_backward_arguments(grad_y, grad_logits, x, weights, logits, leaf, activation)
    run = backward if status().available and covers(x, weights) else reference.backward
    with torch.autocast(x.device.type, enabled=False):
        return run(grad_y, grad_logits, x, weights, logits, leaf, activation, rows=rows)


def _cmm_inference(x: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    weights, scales, activation = ops.split_inference_arguments(rest)
    ops.check_inference_arguments(x, bias, weights, scales, activation)
    run = inference if status().available and covers(x, weights, bias) else reference.inference
    with torch.autocast(x.device.type, enabled=False):
        return run(x, bias, weights, scales, activation)
