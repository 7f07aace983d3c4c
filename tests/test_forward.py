"""Forward passes: a model is left as it was, and its tensors are found in whatever it returns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fffconvert.forward import evaluation, tensors_in


def test_evaluation_restores_modes_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    model[1].eval()
    state = torch.random.get_rng_state()

    def fail() -> None:
        with evaluation(model):
            assert not any(module.training for module in model.modules())
            torch.rand(3)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.equal(state, torch.random.get_rng_state())


def test_tensors_in_nested_outputs():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert tensors_in({"x": a, "y": [b, (c, "text", 1)], "z": None}) == [a, b, c]
