"""The ops on NVIDIA GPUs, by kernels that CuPy compiles and launches."""

from __future__ import annotations

import torch
from torch import Tensor

from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.backend import Operation, Passed, Support, without_autocast
from fffconvert.runtime.cupy_kernels import FLOATS, TYPES
from fffconvert.runtime.cupy_status import status as status
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
from fffconvert.runtime.weights import Scales, Weights

NAME = "cupy"
SUPPORT = Support("cuda", FLOATS, tuple(TYPES))
FEW_TOKENS = 1024
"""Up to so many tokens, a block takes each of them through the layer. By counting bytes, not measured."""
LARGEST = 65535
"""Limit of the second and third axis of a grid."""


def why_not(operation: Operation, x: Tensor, weights: Weights, bias: Tensor | None = None) -> str | None:
    """As `Backend.why_not`."""
    found = status()  # asked for at a call, so that importing does not start CUDA
    if not found.available:
        return found.reason
    return SUPPORT.why_not(operation, x, weights) or _uncovered(x, weights, bias)


def _uncovered(x: Tensor, weights: Weights, bias: Tensor | None) -> str | None:
    """What the kernels do not know."""
    if weights.leaf_threshold is not None:
        return "its leaf blocks have no thresholds"
    tensors = {"x": x, "bias": bias, **weights._asdict()}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    width = 0 if weights.leaf_in_weight is None else weights.leaf_in_weight.shape[2]
    if any(tensor.dtype not in FLOATS for name, tensor in given.items() if name.endswith("bias")):
        return f"its biases are {', '.join(map(str, FLOATS))}"
    if any(tensor.device != x.device for tensor in given.values()):
        return "the tensors are on several devices"
    if any(tensor.numel() == 0 for tensor in given.values()):
        return "there is nothing to compute"
    if max(len(weights.in_weight), width) > LARGEST:
        return f"it takes up to {LARGEST} trees and neurons of a leaf"
    return None


@without_autocast
def forward(x: Tensor, weights: Weights, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """As `Backend.forward`."""
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


@without_autocast
def inference(x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> Tensor:
    """As `Backend.inference`."""
    x, bias = x.contiguous(), bias.contiguous()
    layer = layer_for(x, weights, scales, activation)
    y = x.new_empty(len(x), len(bias))
    if len(x) <= FEW_TOKENS and fits_one_block(layer):
        token_forward(x, y, None, None, bias, layer)
    else:
        _tile_forward(x, y, bias, layer)
    return y


@without_autocast
def backward(grad_y: Tensor, grad_logits: Tensor, passed: Passed, rows: bool = True) -> list[Tensor]:
    """As `Backend.backward`. The same to the bit in every run."""
    x, weights, logits, leaf, activation = passed
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


def prepare(bias: Tensor, weights: Weights, scales: Scales, activation: str) -> None:
    """As `Backend.prepare`: there is no other form."""


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
