"""The FFF layer written down a second time, one token and one node at a time, apart from the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

VARIANTS = {
    "plain": {},
    "branch": {"branches": 2},
    "leaf": {"leaf_width": 3},
    "gated leaf": {"leaf_width": 2, "gated": True},
    "branch and gated leaf": {"branches": 2, "leaf_width": 2, "gated": True},
}
SPARSE = {
    "sparse leaf": {"leaf_width": 5, "sparse": True},
    "sparse gated leaf": {"branches": 2, "leaf_width": 5, "gated": True, "sparse": True},
}
"""With thresholds, which the CUDA kernels do not know."""


def tree_tensors(
    draw: Callable[[str, tuple[int, ...]], Tensor],
    *,
    trees: int,
    depth: int,
    d_in: int,
    d_out: int,
    branches: int = 1,
    leaf_width: int = 0,
    gated: bool = False,
    sparse: bool = False,
) -> dict[str, Tensor]:
    """The trees' tensors by name, each drawn for its shape."""
    nodes, leaves = 2 ** (depth + 1) - 1, 2 ** (depth + 1)
    shapes = {
        "in_weight": (trees, nodes, d_in),
        "in_bias": (trees, nodes),
        "out_weight": (trees, branches * nodes, d_out),
    }
    if branches == 2:
        shapes["leaf_constant"] = (trees, leaves, d_out)
    if leaf_width:
        shapes["leaf_in_weight"] = (trees, leaves, leaf_width, d_in)
        shapes["leaf_in_bias"] = (trees, leaves, leaf_width)
        shapes["leaf_out_weight"] = (trees, leaves, leaf_width, d_out)
        if gated:
            shapes["leaf_gate_weight"] = (trees, leaves, leaf_width, d_in)
            shapes["leaf_gate_bias"] = (trees, leaves, leaf_width)
        if sparse:
            shapes["leaf_threshold"] = (trees, leaves, leaf_width)
    return {name: draw(name, shape) for name, shape in shapes.items()}


def integers(generator: torch.Generator) -> Callable[[str, tuple[int, ...]], Tensor]:
    """Small integers: sums are exact in float32; logits of nodes, even plus odd numbers, are never zero."""

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randint(-2, 3, shape, generator=generator).float()
        return {"in_weight": 2 * values, "in_bias": 2 * values + 1}.get(name, values)

    return draw


def normals(generator: torch.Generator, dtype: torch.dtype) -> Callable[[str, tuple[int, ...]], Tensor]:
    """Normal numbers, scaled for sums of order one."""

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        scale = 0.5 if name.endswith("bias") else shape[-1] ** -0.5
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    return draw


def loop(
    x: Tensor, tensors: Mapping[str, Tensor | None], activation: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [tokens, d_out], visited logits [tokens, T, D + 1] and leaves [tokens, T], in float64.

    Differentiable, so that gradients can be compared too.
    Takes the trunk (`trunk_in`, `trunk_out`) and output bias (`bias`) of a whole layer too.
    """
    w = {name: tensor.double() for name, tensor in tensors.items() if tensor is not None}
    trees, nodes = w["in_bias"].shape
    outputs, logits, leaves = [], [], []
    for token in x.double():
        y = torch.zeros(w["out_weight"].shape[2], dtype=torch.float64)
        if "bias" in w:
            y = y + w["bias"]
        if "trunk_in" in w:
            y = y + w["trunk_out"].T @ (w["trunk_in"] @ token)
        for t in range(trees):
            n = 0
            while n < nodes:
                s = w["in_weight"][t, n] @ token + w["in_bias"][t, n]
                right = int(s > 0)
                row = 2 * n + right if w["out_weight"].shape[1] == 2 * nodes else n
                y = y + activation(s) * w["out_weight"][t, row]
                logits.append(s)
                n = 2 * n + 1 + right
            leaf = n - nodes
            leaves.append(leaf)
            if "leaf_constant" in w:
                y = y + w["leaf_constant"][t, leaf]
            if "leaf_in_weight" in w:
                hidden = activation(w["leaf_in_weight"][t, leaf] @ token + w["leaf_in_bias"][t, leaf])
                if "leaf_threshold" in w:
                    hidden = torch.where(hidden.abs() > w["leaf_threshold"][t, leaf], hidden, 0.0)
                if "leaf_gate_weight" in w:
                    hidden = hidden * (w["leaf_gate_weight"][t, leaf] @ token + w["leaf_gate_bias"][t, leaf])
                y = y + hidden @ w["leaf_out_weight"][t, leaf]
        outputs.append(y)
    levels = nodes.bit_length()
    return (
        torch.stack(outputs) if outputs else torch.zeros(0, w["out_weight"].shape[2], dtype=torch.float64),
        torch.stack(logits).view(len(x), trees, levels) if logits else x.new_empty(0, trees, levels).double(),
        torch.tensor(leaves, dtype=torch.int64).view(len(x), trees),
    )


def masked_dense(
    x: Tensor, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, depth: int
) -> tuple[Tensor, Tensor]:
    """The published training forward: every neuron of every tree, all but the visited ones masked to 0.

    Takes the published layout: in_weight [T * N, d_in], in_bias [T * N], out_weight [d_out, T * N].
    Returns the output and the smallest |logit| that each token met.
    """
    nodes = 2 ** (depth + 1) - 1
    logits = torch.nn.functional.linear(x, in_weight, in_bias).unflatten(1, (-1, nodes))
    visited = torch.zeros_like(logits, dtype=torch.bool)
    visited[:, :, 0] = True
    for parent in range(nodes // 2):
        right = logits[:, :, parent] > 0
        visited[:, :, 2 * parent + 1] = visited[:, :, parent] & ~right
        visited[:, :, 2 * parent + 2] = visited[:, :, parent] & right
    hidden = torch.nn.functional.gelu(logits) * visited
    margin = logits.abs().masked_fill(~visited, torch.inf).amin((1, 2))
    return hidden.flatten(1) @ out_weight.T, margin
