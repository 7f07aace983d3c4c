"""Leaf blocks: choice against brute force, regression against numpy, plain and gated blocks, ugly inputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fffconvert.fit import fit_layer, r2, token_weights
from fffconvert.fit import layer as layer_module
from fffconvert.fit.diagnostics import diagnose
from fffconvert.fit.leaves import LeafFit, _greedy, straightest
from fffconvert.fit.moments import Principal
from fffconvert.fit.neurons import Neurons
from fffconvert.planning import FFFSpec
from fffconvert.runtime import cmm
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.leaves import arrivals
from fffconvert.tree import FFFLayer

WIDTH, HIDDEN = 12, 48


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(gated: bool, activation: str = "gelu", scale: float = 1.0) -> tuple[Neurons, Tensor]:
    """The neurons and output rows of a dense block."""
    maps = 2 if gated else 1
    rows = 2 * draw(maps, HIDDEN, WIDTH, seed=1) * WIDTH**-0.5
    out = scale * draw(HIDDEN, WIDTH, seed=3)
    return Neurons(rows, draw(maps, HIDDEN, seed=2) - 0.5, out, activation), out


def tokens(count: int, seed: int = 0) -> Tensor:
    return draw(count, WIDTH, seed=seed) @ draw(WIDTH, WIDTH, seed=100) * WIDTH**-0.5


def fit(
    gated: bool, count: int = 4000, activation: str = "gelu", **options: float
) -> tuple[FFFLayer, Tensor, Tensor]:
    neurons, out = block(gated, activation)
    x = tokens(count)
    y = neurons(x) @ out + 1
    spec = FFFSpec(
        WIDTH,
        WIDTH,
        branch_outputs=True,
        leaf_gated=gated,
        activation=activation,
        **options,  # type: ignore[arg-type]
    )
    return fit_layer(x, y, spec, neurons), x, y


def score(layer: FFFLayer, gated: bool, activation: str = "gelu") -> float:
    neurons, out = block(gated, activation)
    x = tokens(2000, seed=9)
    with torch.no_grad():
        return r2(neurons(x) @ out + 1, layer(x))


both = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


@both
def test_leaves_as_wide_as_the_block_are_the_block(gated: bool):
    layer, _, _ = fit(gated, depth=0, leaf_width=HIDDEN + WIDTH)
    assert score(layer, gated) > 0.98


@both
@pytest.mark.parametrize("depth", [0, 2])
def test_leaves_of_all_neurons_are_the_block_to_the_digit(gated: bool, depth: int):
    layer, _, _ = fit(gated, depth=depth, leaf_width=HIDDEN + 3)
    assert score(layer, gated) > 1 - 1e-9


@both
@pytest.mark.parametrize("depth", [0, 1])
def test_sparse_leaves_skip_their_share_of_the_smallest(gated: bool, depth: int):
    layer, x, y = fit(gated, 8000, "silu", depth=depth, leaf_width=HIDDEN, leaf_sparsity=0.4)
    block = layer.weights.leaf_block
    _, _, leaf = cmm(x, layer.weights, "silu")
    kept = torch.zeros(())
    for at, rows in arrivals(leaf, layer.spec.leaves):
        a = F.silu(x[rows] @ block.up[0][at].T + block.up[1][at])
        kept = kept + (a.abs() > block.threshold[at]).sum()
    assert float(kept) / (len(x) * HIDDEN) == pytest.approx(0.6, abs=0.01)
    assert diagnose(layer, x, y).skipped_share == pytest.approx(1 - float(kept) / (len(x) * HIDDEN))
    random = fit(gated, 8000, "silu", depth=depth, leaf_width=HIDDEN)[0]
    drawn = torch.rand(random.fff_leaf_out_weight.shape[:3], generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        random.fff_leaf_out_weight[drawn] = 0
    lost = [1 - score(other, gated, "silu") for other in (layer, random)]
    assert lost[0] < 0.1 * lost[1]


@both
def test_skipped_neurons_are_worth_more_than_none(gated: bool):
    """Of 36 neurons 40 % are skipped for each token; 21 that are always computed keep less."""
    sparse, x, y = fit(gated, 8000, "silu", depth=1, leaf_width=36, leaf_sparsity=0.4)
    narrow = fit(gated, 8000, "silu", depth=1, leaf_width=21)[0]
    assert diagnose(sparse, x, y).skipped_share == pytest.approx(0.4, abs=0.02)
    assert score(narrow, gated, "silu") < score(sparse, gated, "silu")


def test_sparse_leaves_keep_the_mean_output():
    layer, x, y = fit(True, 4000, depth=0, leaf_width=HIDDEN, leaf_sparsity=0.5)
    assert float((layer(x) - y).detach().mean(0).abs().max()) < 0.02 * float(y.std())


@both
def test_wider_leaves_and_deeper_trees_keep_more_of_new_tokens(gated: bool):
    narrow, wide, deep = (
        score(fit(gated, 8000, **shape)[0], gated)
        for shape in (
            {"depth": 0, "leaf_width": 6},
            {"depth": 0, "leaf_width": 18},
            {"depth": 2, "leaf_width": 18},
        )
    )
    assert narrow + 0.05 < wide < deep


def test_they_beat_the_best_original_neurons_of_the_same_width_refitted():
    neurons, out = block(False)
    layer, x, y = fit(False, 8000, depth=2, leaf_width=15)
    values = neurons(x) - neurons(x).mean(0)
    moment = (values.T @ values).double()
    order, _ = _greedy(moment.float(), (values.T @ (y - y.mean(0))), moment.diagonal(), 18)
    kept = torch.cat([neurons(x)[:, order], torch.ones(len(x), 1)], 1)
    coefficients = torch.linalg.lstsq(kept, y).solution
    new = tokens(2000, seed=9)
    rival = torch.cat([neurons(new)[:, order], torch.ones(2000, 1)], 1) @ coefficients
    assert 1 - score(layer, False) < 0.8 * (1 - r2(neurons(new) @ out + 1, rival))


@both
def test_two_trees_with_leaves_keep_more_than_one(gated: bool):
    scores = [score(fit(gated, 8000, depth=1, leaf_width=8, trees=trees)[0], gated) for trees in (1, 2)]
    assert scores[0] + 0.02 < scores[1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@both
def test_every_activation(activation: str, gated: bool):
    layer, _, _ = fit(gated, 2000, activation, depth=1, leaf_width=20)
    assert score(layer, gated, activation) > 0.5
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


def test_a_linear_function_needs_no_neuron_of_the_block():
    neurons, _ = block(False, scale=0.0)
    x = tokens(3000)
    y = x @ draw(WIDTH, 3, seed=5) @ draw(3, WIDTH, seed=6)
    layer = fit_layer(x, y, FFFSpec(WIDTH, WIDTH, 0, leaf_width=3, branch_outputs=True), neurons)
    assert r2(y, layer(x).detach()) > 0.99


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_first_neuron_is_the_best_and_gains_add_up(seed: int):
    values, target = draw(200, 7, seed=seed), draw(200, 3, seed=seed + 1)
    values = values @ draw(7, 7, seed=seed + 2)
    second, cross = values.T @ values, values.T @ target
    order, gains = _greedy(second, cross, second.diagonal().double(), 4)

    def explained(chosen: tuple[int, ...]) -> float:
        design = values[:, list(chosen)].double().numpy()
        fitted = design @ np.linalg.lstsq(design, target.double().numpy(), rcond=None)[0]
        return float((fitted**2).sum())

    alone = [explained((index,)) for index in range(7)]
    assert alone[int(order[0])] == pytest.approx(max(alone), rel=1e-3)
    assert float(gains.sum()) == pytest.approx(explained(tuple(order.tolist())), rel=1e-2)
    best = max(explained(pair) for pair in combinations(range(7), 2))
    assert explained(tuple(order[:2].tolist())) <= best * (1 + 1e-6)


def test_a_leaf_solves_the_ridge_regression_on_its_own_neurons():
    neurons, out = block(False)
    x = tokens(3000)
    y = neurons(x) @ out
    weight = token_weights(y)
    principal, z = Principal.of(x, weight)
    leaf = LeafFit(neurons, 10, x, weight, principal).fit(x, z, y, weight)
    design = np.concatenate([leaf.neurons(x).numpy(), np.ones((3000, 1))], 1).astype(np.float64)
    root = np.sqrt(weight.numpy().astype(np.float64))[:, None]
    best = np.linalg.lstsq(root * design, root * y.numpy(), rcond=None)[0]
    own = (weight @ (y - leaf(x)).square().sum(1)).item()
    least = float(((root * (design @ best - y.numpy())) ** 2).sum())
    assert least <= own < 1.1 * least  # the ridge costs a little on the leaf's own tokens
    assert torch.equal(leaf.neurons.rows[:, : len(leaf.chosen)], neurons.rows[:, leaf.chosen])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_straightest_point_is_straight(activation: str):
    point = straightest(activation)
    x = point + torch.linspace(-0.3, 0.3, 31, dtype=torch.float64)
    values = ACTIVATIONS[activation].fn(x)
    line = values[0] + (values[-1] - values[0]) * torch.linspace(0, 1, 31, dtype=torch.float64)
    assert (values - line).abs().max() < 0.05 * (values[-1] - values[0]).abs()


UGLY = {
    "one token": (tokens(1), 1.0),
    "fewer tokens than nodes": (tokens(7), 1.0),
    "constant inputs": (torch.ones(500, WIDTH), 1.0),
    "low rank": (draw(500, 2) @ draw(2, WIDTH, seed=1), 1.0),
    "outliers": (torch.cat([tokens(500), 1e4 * tokens(2, seed=1)]), 1.0),
    "outputs that are zero": (tokens(500), 0.0),
    "tiny outputs": (tokens(500), 1e-12),
    "large outputs": (tokens(500), 1e12),
}


@both
@pytest.mark.parametrize("name", UGLY)
def test_ugly_activations_give_finite_layers(gated: bool, name: str):
    x, scale = UGLY[name]
    neurons, out = block(gated, scale=scale)
    y = neurons(x) @ out
    spec = FFFSpec(WIDTH, WIDTH, 3, leaf_width=5, branch_outputs=True, leaf_gated=gated)
    layer = fit_layer(x, y, spec, neurons)
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    assert r2(y, layer(x).detach(), token_weights(y)) > -0.01


@both
def test_few_tokens_leave_the_original_output_rows(gated: bool):
    neurons, out = block(gated)
    x, new = tokens(30), tokens(2000, seed=9)
    spec = FFFSpec(WIDTH, WIDTH, 0, leaf_width=40, branch_outputs=True, leaf_gated=gated)
    missed = []
    for known in (neurons, replace(neurons, out=torch.zeros_like(out))):
        layer = fit_layer(x, neurons(x) @ out, spec, known)
        missed.append(1 - r2(neurons(new) @ out, layer(new).detach()))
    assert missed[0] < 0.5 * missed[1]


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_a_leaf_that_no_token_reaches_is_fitted_to_all(gated: bool, monkeypatch: pytest.MonkeyPatch):
    """On few tokens a cut may leave one side of a node without any."""
    grown = layer_module.grow_trees

    def with_an_empty_end(*arguments: object) -> list[object]:
        trees = list(grown(*arguments))
        (first, own), (second, other), *more = trees[0].ends
        ends = ((first, slice(0, 0)), (second, slice(own.start, other.stop)), *more)
        return [replace(trees[0], ends=ends), *trees[1:]]

    monkeypatch.setattr(layer_module, "grow_trees", with_an_empty_end)
    layer, x, y = fit(gated, depth=1, leaf_width=8)
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    assert layer.fff_leaf_out_weight[0, 0].any()
    assert layer(x).shape == y.shape


def test_the_same_again():
    first, second = (fit(True, depth=2, leaf_width=7)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_neurons_are_those_of_the_activation():
    neurons, _ = block(True)
    x = tokens(5)
    expected = F.gelu(x @ neurons.rows[0].T + neurons.bias[0]) * (x @ neurons.rows[1].T + neurons.bias[1])
    torch.testing.assert_close(neurons(x), expected)
    torch.testing.assert_close(neurons[torch.tensor([3, 1])](x), expected[:, [3, 1]])
