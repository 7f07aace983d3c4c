"""Dense controls: dense by construction, also after training, and as good as they can be."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fffconvert.controls import Control, dense_control, dense_layer, frozen_parameters
from fffconvert.controls.make import control_layer
from fffconvert.fit import r2
from fffconvert.fit.neurons import Neurons
from fffconvert.fit.refine import split_off

WIDTH = 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_dense_is_dense_of_the_active_width_and_better_than_nothing(site_and_layer):
    site, layer, x, y = site_and_layer
    with torch.no_grad():
        made = control_layer(site, layer, Control.DENSE, x)
        found = made(x)
    width = layer.spec.active_width
    used = width if not layer.spec.leaf_gated else made.spec.leaf_width
    assert used == width
    assert (found - y).square().mean() < 0.9 * (y - y.mean(0)).square().mean()
    # One formula for all tokens: a dense block of its parameters gives the same.
    act = nn.functional.silu
    if layer.spec.leaf_gated:
        up = x @ made.fff_leaf_in_weight[0, 0].T + made.fff_leaf_in_bias[0, 0]
        gate = x @ made.fff_leaf_gate_weight[0, 0].T + made.fff_leaf_gate_bias[0, 0]
        expected = (act(up) * gate) @ made.fff_leaf_out_weight[0, 0] + made.fff_bias
    else:
        hidden = act(x @ made.fff_in_weight[:, 0].T + made.fff_in_bias[:, 0])
        expected = hidden @ made.fff_out_weight[:, 0] + made.fff_bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_dense_stays_dense_in_training(site_and_layer):
    site, layer, x, y = site_and_layer
    with torch.no_grad():
        made = control_layer(site, layer, Control.DENSE, x)
    for name in frozen_parameters(Control.DENSE, made.spec):
        made.get_parameter(name).requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        (made(x) - y).square().mean().backward()
        optimiser.step()
    if layer.spec.leaf_gated:
        assert not made.fff_in_weight.any()
        assert not made.fff_leaf_in_weight[0, 1].any()


def test_a_dense_control_learns_a_block_of_its_own_width():
    up, down = draw(4, WIDTH, seed=4), draw(WIDTH, 4, seed=5)
    x = 3 * draw(20_000, WIDTH) + 5
    y = F.gelu((x - 5) / 3 @ up.T) @ down.T + 7
    control, passes = dense_control(*split_off(x, y), 8, "gelu", passes=40)
    assert passes <= 40
    assert r2(y, control(x).detach()) > 0.95


def test_all_neurons_kept_are_the_block_and_fewer_keep_less(neurons: Neurons):
    x = draw(4000, WIDTH)
    y = neurons(x) @ neurons.out + 7
    scores = [r2(y, dense_layer(x, y, neurons, width)(x).detach()) for width in (4, 16, len(neurons))]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.9999
