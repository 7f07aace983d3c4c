"""Routing while training: soft, straight-through, leaking, and the terms that shape it."""

from __future__ import annotations

import pytest
import torch

from fffconvert.planning import FFFSpec
from fffconvert.runtime import cmm
from fffconvert.tree import FFFLayer, TrainingRouting, expectation

SPECS = [
    FFFSpec(6, 5, 2),
    FFFSpec(6, 5, 3, trees=2, branch_outputs=True),
    FFFSpec(6, 5, 1, trees=2, branch_outputs=True, leaf_width=3),
    FFFSpec(6, 5, 2, branch_outputs=True, leaf_width=3, leaf_gated=True, activation="silu"),
    FFFSpec(6, 5, 1, branch_outputs=True, leaf_width=4, leaf_sparsity=0.5, activation="silu"),
]


def drawn(spec: FFFSpec, tokens: int = 40) -> tuple[FFFLayer, torch.Tensor]:
    torch.manual_seed(0)
    layer = FFFLayer(spec, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer, torch.randn(tokens, spec.d_in, dtype=torch.float64)


def brute_force(layer: FFFLayer, x: torch.Tensor, temperature: float) -> torch.Tensor:
    """The mean over all paths, each run by itself with its own probability."""
    spec, total = layer.spec, torch.zeros(len(x), layer.spec.d_out, dtype=x.dtype)
    for tree in range(spec.trees):
        single = [None if w is None else w[tree : tree + 1] for w in layer.weights]
        for leaf in range(spec.leaves):
            weights = type(layer.weights)(*single)
            probability = torch.ones(len(x), dtype=x.dtype)
            node = 0
            for level in range(spec.depth, -1, -1):
                right = (leaf >> level) & 1
                s = x @ weights.in_weight[0, node] + weights.in_bias[0, node]
                probability = probability * torch.sigmoid((s if right else -s) / temperature)
                node = 2 * node + 1 + right
            total += probability[:, None] * along(weights, x, leaf, spec)
    return total


def along(weights, x, leaf, spec) -> torch.Tensor:
    """The output along one path, whatever the decisions."""
    from fffconvert.runtime.activations import ACTIVATIONS

    fn, node, y = ACTIVATIONS[spec.activation].fn, 0, torch.zeros(len(x), spec.d_out, dtype=x.dtype)
    for level in range(spec.depth, -1, -1):
        right = (leaf >> level) & 1
        s = x @ weights.in_weight[0, node] + weights.in_bias[0, node]
        row = 2 * node + right if spec.branch_outputs else node
        y = y + fn(s)[:, None] * weights.out_weight[0, row]
        node = 2 * node + 1 + right
    if weights.leaf_constant is not None:
        y = y + weights.leaf_constant[0, leaf]
    if weights.leaf_in_weight is not None:
        hidden = fn(x @ weights.leaf_in_weight[0, leaf].T + weights.leaf_in_bias[0, leaf])
        if weights.leaf_threshold is not None:
            hidden = hidden * (hidden.abs() > weights.leaf_threshold[0, leaf])
        if weights.leaf_gate_weight is not None:
            hidden = hidden * (x @ weights.leaf_gate_weight[0, leaf].T + weights.leaf_gate_bias[0, leaf])
        y = y + hidden @ weights.leaf_out_weight[0, leaf]
    return y


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_soft_routing_is_the_mean_over_all_paths(spec):
    layer, x = drawn(spec)
    with torch.no_grad():
        expected = brute_force(layer, x, 0.7)
        torch.testing.assert_close(expectation(x, layer.weights, spec.activation, 0.7), expected)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_without_a_temperature_it_is_the_layer_computed_densely(spec):
    layer, x = drawn(spec)
    y, _, _ = cmm(x, layer.weights, spec.activation)
    masked = expectation(x, layer.weights, spec.activation, None)
    torch.testing.assert_close(masked, y)
    grads = [torch.autograd.grad(out.square().sum(), list(layer.parameters())[:3]) for out in (y, masked)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_soft_routing_becomes_hard_as_it_cools(spec):
    layer, x = drawn(spec)
    hard, logits, _ = cmm(x, layer.weights, spec.activation)
    clear = logits.abs().flatten(1).amin(1) > 0.01
    cold = expectation(x, layer.weights, spec.activation, 1e-4)
    torch.testing.assert_close(cold[clear], hard[clear])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_straight_through_has_hard_values_and_the_decisions_of_soft_gradients(spec):
    layer, x = drawn(spec)
    hard = layer(x)
    plain = torch.autograd.grad(hard.square().sum(), list(layer.parameters()))
    layer.routing = TrainingRouting(0.5, straight_through=True)
    y = layer(x)
    torch.testing.assert_close(y, hard)
    names = [name for name, _ in layer.named_parameters()]
    gradients = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    for name, found, before in zip(names, gradients, plain, strict=True):
        if name.startswith("fff_in_"):
            assert not torch.allclose(found, before)
        else:
            torch.testing.assert_close(found, before)


def test_leaking_turns_decisions_round():
    spec = SPECS[1]
    layer, x = drawn(spec, 4000)
    layer.routing = TrainingRouting(leak=0.3)
    moved = (layer(x) - layer_hard(layer, x)).abs().amax(1) > 1e-9
    share = 1 - 0.7 ** (2 * 4)
    assert abs(float(moved.double().mean()) - share) < 0.03
    layer.routing.leak = 1e-9
    torch.testing.assert_close(layer(x), layer_hard(layer, x))


def layer_hard(layer: FFFLayer, x: torch.Tensor) -> torch.Tensor:
    y, _, _ = cmm(x, layer.weights, layer.spec.activation)
    return y + layer.fff_bias


def test_a_leaking_layer_has_the_gradients_of_the_path_it_took():
    layer, x = drawn(FFFSpec(6, 5, 0, branch_outputs=True))
    layer.routing = TrainingRouting(leak=1.0)
    found = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    s = x @ layer.fff_in_weight[0, 0] + layer.fff_in_bias[0, 0]
    row = (s <= 0).long()
    y = torch.nn.functional.gelu(s)[:, None] * layer.fff_out_weight[0, row] + layer.fff_leaf_constant[0, row]
    expected = torch.autograd.grad((y + layer.fff_bias).square().sum(), list(layer.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_balance_term_spreads_tokens_and_the_entropy_term_makes_decisions_clear():
    spec = FFFSpec(6, 5, 2)
    layer, x = drawn(spec, 500)
    with torch.no_grad():
        layer.fff_in_bias += 2.0

    def shares() -> float:
        _, logits, _ = cmm(x, layer.weights, spec.activation)
        return float((logits[:, 0, 0] > 0).double().mean())

    before = shares()
    for weights, better in (
        ({"load_balance": 1.0}, lambda: abs(shares() - 0.5) < abs(before - 0.5)),
        ({"entropy": 1.0}, lambda: True),
    ):
        layer.routing = TrainingRouting(**weights)
        optimiser = torch.optim.Adam(layer.parameters(), 0.02)
        terms = []
        for _ in range(60):
            layer(x)
            term = layer.routing.terms.pop()
            optimiser.zero_grad()
            term.backward()
            optimiser.step()
            terms.append(float(term))
        assert terms[-1] < 0.7 * terms[0]
        assert better()


def test_the_terms_are_about_tokens_and_not_about_padding():
    spec = FFFSpec(6, 5, 2)
    layer, x = drawn(spec, 40)
    tokens = torch.arange(40) < 25
    layer.routing = TrainingRouting(load_balance=1.0, entropy=0.5)
    layer(x[:25])
    layer.routing.tokens = tokens
    layer(x)
    alone, masked = layer.routing.terms
    torch.testing.assert_close(masked, alone)


def test_inference_ignores_all_of_it():
    layer, x = drawn(SPECS[2])
    with torch.no_grad():
        expected = layer(x)
        layer.routing = TrainingRouting(1.0, leak=0.5)
        assert torch.equal(layer(x), expected)
