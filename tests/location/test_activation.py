"""Naming activations from hidden graphs."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from fffconvert.location.activation import name_activation
from fffconvert.location.sites import BlockKind
from fffconvert.runtime.activations import ACTIVATIONS


def traced(function) -> fx.GraphModule:
    return fx.symbolic_trace(function)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_known_activation_is_named(name: str):
    fn = ACTIVATIONS[name].fn
    plain, gated = fx.Graph(), fx.Graph()
    for graph, kind in ((plain, BlockKind.PLAIN), (gated, BlockKind.GATED)):
        result = graph.call_function(fn, (graph.placeholder("g"),))
        if kind is BlockKind.GATED:
            result = graph.call_function(torch.mul, (result, graph.placeholder("u")))
        graph.output(result)
        assert name_activation(fx.GraphModule({}, graph), kind, 5) == name


@pytest.mark.parametrize(
    "halves",
    [lambda h: h.chunk(2, -1), lambda h: h.chunk(2, -1)[::-1], lambda h: (h[..., ::2], h[..., 1::2])],
    ids=["gate first", "gate last", "interleaved"],
)
def test_either_half_of_a_fused_projection_may_be_the_gate(halves):
    def fused(h):
        gate, up = halves(h)
        return torch.nn.functional.silu(gate) * up

    assert name_activation(traced(fused), BlockKind.FUSED_GATED, 6) == "silu"


@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_anything_else_is_custom(factor: float):
    assert name_activation(traced(lambda h: torch.relu(h) * factor), BlockKind.PLAIN, 5) == "custom"
    assert name_activation(traced(lambda g, u: torch.relu(g) + u), BlockKind.GATED, 5) == "custom"
