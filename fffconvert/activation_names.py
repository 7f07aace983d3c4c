"""The activations that an FFF layer can use, by name and number (`runtime.activations` has the functions)."""

from __future__ import annotations

ACTIVATION_NUMBERS = {
    "gelu": 0,
    "gelu_tanh": 1,
    "quick_gelu": 2,
    "silu": 3,
    "relu": 4,
    "relu2": 5,
    "leaky_relu": 6,
    "elu": 7,
    "selu": 8,
    "tanh": 9,
    "sigmoid": 10,
    "softplus": 11,
    "mish": 12,
    "hardswish": 13,
    "identity": 14,
}
"""What native code and exported files call each activation; a number is never given to another one.

GELU is the exact form; `gelu_tanh` covers transformers' gelu_new, gelu_fast and gelu_pytorch_tanh.
"""
