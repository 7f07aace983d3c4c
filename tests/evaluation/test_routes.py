"""Routes watched and changed, against one token and one node at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fffconvert as fff
from fffconvert.evaluation import ablation
from fffconvert.evaluation.ablation import _random, _shuffled, _truncated, kept_decisions
from fffconvert.evaluation.routes import (
    Visits,
    along,
    every_node,
    leaves_reached,
    rerouted,
    watched,
)
from fffconvert.planning import FFFSpec
from fffconvert.runtime import ACTIVATIONS
from fffconvert.surgery import layers_of
from fffconvert.tree import FFFLayer

FORMS = {
    "paper": {},
    "branches": {"branch_outputs": True},
    "leaves": {"branch_outputs": True, "leaf_width": 3},
    "gated": {"branch_outputs": True, "leaf_width": 3, "leaf_gated": True, "activation": "silu"},
}


def layer_of(form: str, depth: int = 2, **more: Any) -> FFFLayer:
    torch.manual_seed(0)
    layer = FFFLayer(FFFSpec(6, 5, depth, trees=2, trunk=2, **FORMS[form], **more))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return layer.eval()


def node_outputs(layer: FFFLayer, x: torch.Tensor, tree: int, node: int, right: bool) -> torch.Tensor:
    s = layer.fff_in_weight[tree, node] @ x + layer.fff_in_bias[tree, node]
    row = 2 * node + right if layer.spec.branch_outputs else node
    return ACTIVATIONS[layer.spec.activation].fn(s) * layer.fff_out_weight[tree, row]


def leaf_output(layer: FFFLayer, x: torch.Tensor, tree: int, leaf: int) -> torch.Tensor:
    y = torch.zeros(layer.spec.d_out)
    if layer.fff_leaf_constant is not None:
        y = y + layer.fff_leaf_constant[tree, leaf]
    if layer.fff_leaf_in_weight is not None:
        hidden = layer.fff_leaf_in_weight[tree, leaf] @ x + layer.fff_leaf_in_bias[tree, leaf]
        hidden = ACTIVATIONS[layer.spec.activation].fn(hidden)
        if layer.fff_leaf_gate_weight is not None:
            hidden = hidden * (
                layer.fff_leaf_gate_weight[tree, leaf] @ x + layer.fff_leaf_gate_bias[tree, leaf]
            )
        y = y + hidden @ layer.fff_leaf_out_weight[tree, leaf]
    return y


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_tokens_go_where_they_are_sent(form: str):
    layer, x = layer_of(form), torch.randn(7, 6)
    leaf = torch.randint(8, (7, 2))
    found = along(layer, x, leaf)
    for token in range(7):
        expected = torch.zeros(5)
        for tree in range(2):
            node, end = 0, int(leaf[token, tree])
            for k in range(3):
                right = bool(end >> (2 - k) & 1)
                expected += node_outputs(layer, x[token], tree, node, right)
                node = 2 * node + 1 + right
            expected += leaf_output(layer, x[token], tree, end)
        torch.testing.assert_close(found[token], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_every_node_counts_by_the_mean_of_its_level(form: str):
    layer, x = layer_of(form), torch.randn(5, 6)
    found = every_node(layer, x, torch.zeros(5, 2, dtype=torch.long))
    for token in range(5):
        expected = torch.zeros(5)
        for tree in range(2):
            for level in range(3):
                for node in range(2**level - 1, 2 ** (level + 1) - 1):
                    s = layer.fff_in_weight[tree, node] @ x[token] + layer.fff_in_bias[tree, node]
                    expected += node_outputs(layer, x[token], tree, node, bool(s > 0)) / 2**level
            expected += sum(leaf_output(layer, x[token], tree, leaf) for leaf in range(8)) / 8
        torch.testing.assert_close(found[token], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_layer_rerouted_to_its_own_leaves_is_the_layer(axis: int):
    model = torch.nn.Sequential(layer_of("leaves", feature_axis=axis))
    x = torch.randn(2, 6, 4) if axis == 1 else torch.randn(2, 4, 6)
    expected = model(x)
    with rerouted(model, lambda name: along):
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    with rerouted(model, lambda name: lambda layer, tokens, leaf: torch.zeros(len(tokens), 5)):
        assert not torch.allclose(model(x), expected)
    assert torch.equal(model(x), expected)


@torch.no_grad()
def test_visits_count_every_token_at_its_leaf():
    model, x = torch.nn.Sequential(layer_of("branches")), torch.randn(2, 50, 6)
    visits = Visits(model)
    with watched(model, visits):
        model(x)
        model(x[:1])
    leaf = leaves_reached(layers_of(model)["0"].layer, torch.cat([x.flatten(0, 1), x[0]]))
    for tree in range(2):
        expected = [int((leaf[:, tree] == place).sum()) for place in range(8)]
        assert visits.counts["0"][tree].tolist() == expected
    model(x)
    assert int(visits.counts["0"].sum()) == 2 * 150


@torch.no_grad()
def test_shuffled_and_random_routes():
    layer, x = layer_of("leaves"), torch.randn(400, 6)
    leaf, seen = leaves_reached(layer, x), []

    def note(layer: FFFLayer, tokens: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        seen.append(leaf)
        return tokens

    patch = pytest.MonkeyPatch()
    patch.setattr(ablation, "along", note)
    for make in (_shuffled, _random):
        make()(layer, x, leaf)
    patch.undo()
    shuffled, drawn = seen
    assert torch.equal(shuffled.sort(0).values, leaf.sort(0).values)
    assert not torch.equal(shuffled, leaf)
    for tree in range(2):
        assert torch.bincount(drawn[:, tree], minlength=8).min() > 20


@torch.no_grad()
def test_truncated_paths_follow_the_crowd_below_the_kept_decisions(monkeypatch: pytest.MonkeyPatch):
    layer, leaf = layer_of("leaves"), torch.tensor([[0, 7], [1, 6], [1, 6], [5, 0], [4, 0], [4, 1]])
    counts = torch.stack([torch.bincount(leaf[:, tree], minlength=8) for tree in range(2)])
    monkeypatch.setattr(ablation, "along", lambda layer, tokens, leaf: leaf)
    for kept, expected in (
        (3, leaf.tolist()),
        (2, [[1, 6], [1, 6], [1, 6], [4, 0], [4, 0], [4, 0]]),
        (1, [[1, 6], [1, 6], [1, 6], [4, 0], [4, 0], [4, 0]]),
        (0, [[1, 0]] * 6),
    ):
        found = _truncated({"x": counts}, kept)("x")(layer, torch.zeros(6, 6), leaf)
        if kept == 0:  # equal counts: any of the most visited ones
            assert all(
                counts[tree, place] == counts[tree].max()
                for row in found.tolist()
                for tree, place in enumerate(row)
            )
        else:
            assert found.tolist() == expected
    assert kept_decisions(11) == [0, 1, 2, 4, 8]
    assert kept_decisions(0) == [0]


def test_it_is_the_converted_layers_that_are_found(build: Any):
    model = build("encoder")
    assert layers_of(model) == {}
    inputs = {
        "input_ids": torch.randint(5, 35, (40, 7)),
        "attention_mask": torch.ones(40, 7, dtype=torch.long),
    }
    fff.convert(model, depth=1, calibration=[inputs] * 3, tokens=256)
    assert len(layers_of(model)) == 2
