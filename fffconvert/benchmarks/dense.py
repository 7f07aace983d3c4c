"""The dense blocks to compare with, each in the forms that a user could run it in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.processor import cpu
from fffconvert.runtime.activations import ACTIVATIONS

Call = Callable[[Tensor], Tensor]
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Features with any of which a processor multiplies bfloat16 itself; on others torch emulates it."""


class DenseFFN(nn.Module):
    """A plain feedforward block with random weights: d_model to d_hidden, activation, and back."""

    def __init__(self, d_model: int, d_hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.dense_up = nn.Linear(d_model, d_hidden)
        self.activation = ACTIVATIONS[activation].fn
        self.dense_down = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: [..., d_model] to [..., d_model]."""
        y: Tensor = self.dense_down(self.activation(self.dense_up(x)))
        return y


def compiled(block: nn.Module, x: Tensor) -> Call:
    """`torch.compile` for the very shape of `x` and the present number of threads, run once.

    Call `torch.compiler.reset()` before a new shape: a limit of recompilations would silently bring eager
    mode back.

    Raises:
        Exception: Whatever the compiler raises, as where there is no C++ compiler.
    """
    call: Call = torch.compile(block, dynamic=False)
    call(x)
    return call


def emulated() -> str | None:
    """Why a bfloat16 block on this processor would be no fair baseline; None where it is one."""
    if BFLOAT16.intersection(cpu().features):
        return None
    return f"bfloat16 is emulated: the processor has none of {', '.join(sorted(BFLOAT16))}"


def int8(block: nn.Module) -> nn.Module:
    """The block with int8 weights and dynamically quantised inputs.

    Raises:
        Exception: Whatever torch or torchao raises where there is no kernel for this machine.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and what there is
        if hasattr(torch.ao.quantization, "quantize_dynamic"):
            quantize: Any = torch.ao.quantization.quantize_dynamic
            module: nn.Module = quantize(block, {nn.Linear}, dtype=torch.qint8)
            return module
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        module = copy.deepcopy(block)
        quantize_(module, Int8DynamicActivationInt8WeightConfig())
        return module


class MaskedDense(nn.Module):
    """The published training form of a layer: all neurons are computed, those off the path masked to 0.

    For the paper's layer: one output row per node, no trunk, no leaf blocks.

    Reference: arXiv 2311.10770, section 3.
    """

    def __init__(self, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.trees, self.nodes, _ = in_weight.shape
        self.in_weight = nn.Parameter(in_weight.detach().flatten(0, 1).clone())
        self.in_bias = nn.Parameter(in_bias.detach().flatten().clone())
        self.out_weight = nn.Parameter(out_weight.detach().flatten(0, 1).clone())
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer: [tokens, d_in] to [tokens, d_out]."""
        logits = nn.functional.linear(x, self.in_weight, self.in_bias).view(-1, self.trees, self.nodes)
        hidden = nn.functional.gelu(logits) * self._mask(logits.detach())
        return hidden.flatten(1) @ self.out_weight + self.bias

    def _mask(self, logits: Tensor) -> Tensor:
        """1 at the nodes of each token's path, 0 elsewhere: [tokens, T, N]."""
        mask = torch.zeros_like(logits)
        node = torch.zeros(*logits.shape[:2], 1, dtype=torch.int64)
        for _ in range(self.nodes.bit_length()):
            mask.scatter_(2, node, 1.0)
            node = 2 * node + 1 + (logits.gather(2, node) > 0)
        return mask
