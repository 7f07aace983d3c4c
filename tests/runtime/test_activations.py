from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2FN

from fffconvert.runtime import ACTIVATIONS, activations

GRID = torch.linspace(-8, 8, 641, dtype=torch.float64) + 0.003
"""Passes no kink of any activation."""


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_is_that_of_autograd(name):
    activation = ACTIVATIONS[name]
    x = GRID.clone().requires_grad_()
    (expected,) = torch.autograd.grad(activation.fn(x).sum(), x)
    torch.testing.assert_close(activation.derivative(GRID), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("gelu", "gelu"),
        ("gelu_tanh", "gelu_new"),
        ("gelu_tanh", "gelu_fast"),
        ("gelu_tanh", "gelu_pytorch_tanh"),
        ("quick_gelu", "quick_gelu"),
        ("silu", "silu"),
        ("silu", "swish"),
        ("relu", "relu"),
        ("relu2", "relu2"),
        ("leaky_relu", "leaky_relu"),
        ("tanh", "tanh"),
        ("sigmoid", "sigmoid"),
        ("mish", "mish"),
        ("hardswish", "hardswish"),
        ("identity", "linear"),
    ],
)
def test_function_is_that_of_transformers(name, theirs):
    torch.testing.assert_close(ACTIVATIONS[name].fn(GRID), ACT2FN[theirs](GRID), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "function"),
    [("elu", torch.nn.ELU()), ("selu", torch.nn.SELU()), ("softplus", torch.nn.Softplus())],
)
def test_function_is_that_of_torch(name, function):
    torch.testing.assert_close(ACTIVATIONS[name].fn(GRID), function(GRID))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept_and_large_inputs_stay_finite(name, dtype):
    x = torch.tensor([[-100.0, 0.0, 100.0]], dtype=dtype)
    for function in (ACTIVATIONS[name].fn, ACTIVATIONS[name].derivative):
        y = function(x)
        assert y.dtype == dtype
        assert y.shape == x.shape
        assert y.isfinite().all()


def test_numbers_are_what_exported_files_hold():
    names = (
        "gelu gelu_tanh quick_gelu silu relu relu2 leaky_relu elu selu tanh sigmoid softplus mish hardswish"
    )
    assert {name: activation.number for name, activation in ACTIVATIONS.items()} == {
        name: number for number, name in enumerate([*names.split(), "identity"])
    }


def test_the_native_code_has_the_same_numbers():
    header = (Path(activations.__file__).parent / "native" / "cmm.h").read_text(encoding="utf-8")
    found = {name.lower(): int(number) for name, number in re.findall(r"FFF_(\w+) = (\d+),", header)}
    count = found.pop("activations")
    assert {name: a.number for name, a in ACTIVATIONS.items()}.items() <= found.items()
    assert count == len(ACTIVATIONS)
