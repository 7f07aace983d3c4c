"""Diagnostics of a fitted layer against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fffconvert.fit.diagnostics import diagnose
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer


def signs(x: torch.Tensor) -> FFFLayer:
    """A tree of depth 1 that routes by the signs of the first two inputs."""
    layer = FFFLayer(FFFSpec(x.shape[1], x.shape[1], 1, branch_outputs=True))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.fff_in_weight[0, 0, 0] = 1
        layer.fff_in_weight[0, 1:, 1] = 1
    return layer


def test_routing_is_counted():
    x = torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, -3.0], [4.0, -1.0]])
    found = diagnose(signs(x), x, x)
    assert found.routing_entropy == pytest.approx(0.5)  # two of four ends, evenly
    assert found.dead_node_share == pytest.approx(1 / 3)
    assert found.path_balance == pytest.approx(2.0)
    margins = torch.tensor([[1.0, 1], [2, 1], [1, 3], [4, 1]])
    margins = (margins / torch.tensor([2.0, 1.5])).flatten()
    assert found.margins == pytest.approx(margins.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist())


def test_uniform_routing_has_entropy_1_and_one_token_none():
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    found = diagnose(signs(x), x, x)
    assert (found.routing_entropy, found.dead_node_share, found.path_balance) == (1.0, 0.0, 1.0)
    one = diagnose(signs(x), x[:1], x[:1])
    assert (one.routing_entropy, one.path_balance) == (0.0, 4.0)
    assert math.isfinite(one.r2_heldout)
