"""The activations that an FFF layer can use, by name, each with its derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.activation_names import ACTIVATION_NUMBERS


@dataclass(frozen=True)
class Activation:
    """A pointwise function.

    Attributes:
        number: What it is called in native code and in exported files, from `ACTIVATION_NUMBERS`.
        fn: Maps a floating point tensor of any shape to one of the same shape and dtype.
        derivative: The derivative of `fn` at each element, likewise.
    """

    number: int
    fn: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


def _gelu_derivative(x: Tensor) -> Tensor:
    cdf: Tensor = torch.special.ndtr(x)
    return cdf + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh_derivative(x: Tensor) -> Tensor:
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (x + cubic * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * cubic * x * x)


def _sigmoid_derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s)


def _swish_derivative(x: Tensor, slope: float = 1.0) -> Tensor:
    s = torch.sigmoid(slope * x)
    return s * (1 + slope * x * (1 - s))


def _mish_derivative(x: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(x))
    return t + x * torch.sigmoid(x) * (1 - t * t)


def _elu_derivative(x: Tensor, scale: float = 1.0, alpha: float = 1.0) -> Tensor:
    return scale * torch.where(x > 0, torch.ones_like(x), alpha * torch.exp(x))


def _hardswish_derivative(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, x / 3 + 0.5, (x > 0).to(x.dtype))


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gelu": (F.gelu, _gelu_derivative),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), _gelu_tanh_derivative),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: _swish_derivative(x, 1.702)),
    "silu": (F.silu, _swish_derivative),
    "relu": (F.relu, lambda x: (x > 0).to(x.dtype)),
    "relu2": (lambda x: F.relu(x).square(), lambda x: 2 * F.relu(x)),
    "leaky_relu": (F.leaky_relu, lambda x: torch.where(x > 0, torch.ones_like(x), 0.01)),
    "elu": (F.elu, _elu_derivative),
    "selu": (F.selu, lambda x: _elu_derivative(x, _SELU_SCALE, _SELU_ALPHA)),
    "tanh": (torch.tanh, lambda x: 1 - torch.tanh(x).square()),
    "sigmoid": (torch.sigmoid, _sigmoid_derivative),
    "softplus": (F.softplus, torch.sigmoid),
    "mish": (F.mish, _mish_derivative),
    "hardswish": (F.hardswish, _hardswish_derivative),
    "identity": (lambda x: x, torch.ones_like),
}

ACTIVATIONS = {name: Activation(number, *_FUNCTIONS[name]) for name, number in ACTIVATION_NUMBERS.items()}
