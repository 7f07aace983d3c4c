"""Gradient refinement: better where there is something to gain, never worse on the tokens it judges by."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fffconvert.fit import fit_layer, r2
from fffconvert.fit.neurons import Neurons
from fffconvert.fit.refine import refine_layer, split_off, train_block
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

WIDTH = 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Neurons]:
    out = draw(32, WIDTH, seed=3)
    neurons = Neurons(draw(1, 32, WIDTH, seed=1), draw(1, 32, seed=2), out, "gelu")
    x = draw(tokens, WIDTH, seed=seed)
    return x, neurons(x) @ out, neurons


@pytest.mark.parametrize("leaf_width", [0, 4], ids=["paths", "leaves"])
def test_refined_layers_explain_more_of_new_tokens(leaf_width: int):
    x, y, neurons = block(8000)
    own, held = split_off(x, y)
    layer = fit_layer(*own, FFFSpec(WIDTH, WIDTH, 2, leaf_width=leaf_width, branch_outputs=True), neurons)
    new_x, new_y, _ = block(2000, seed=9)
    before = r2(new_y, layer(new_x).detach())
    assert refine_layer(layer, own, held, passes=8) <= 8
    after = r2(new_y, layer(new_x).detach())
    assert 1 - after < 0.995 * (1 - before)


def test_a_layer_that_cannot_be_improved_stays_as_it_is():
    spec = FFFSpec(WIDTH, WIDTH, 2, branch_outputs=True)
    layer = FFFLayer(spec)
    x = draw(3000, WIDTH)
    y = layer(x).detach()
    before = copy.deepcopy(layer.state_dict())
    refine_layer(layer, *split_off(x, y), passes=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_training_stops_where_it_no_longer_helps():
    x = draw(2000, WIDTH)
    linear = nn.Linear(WIDTH, WIDTH)
    y = F.linear(x, draw(WIDTH, WIDTH, seed=4)) + 0.5 * draw(2000, WIDTH, seed=5)
    passes = train_block(linear, *split_off(x, y), rate=0.05, batch=512, passes=200)
    assert passes < 200
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(2000, 1)], 1), y).solution
    least = (y - torch.cat([x, torch.ones(2000, 1)], 1) @ best).square().mean()
    assert (y - linear(x)).square().mean() < 1.05 * least


def test_the_same_again():
    x, y, neurons = block(1000)
    spec = FFFSpec(WIDTH, WIDTH, 1, leaf_width=3, branch_outputs=True)
    states = []
    for _ in range(2):
        layer = fit_layer(x, y, spec, neurons)
        refine_layer(layer, *split_off(x, y), passes=2)
        states.append(layer.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
