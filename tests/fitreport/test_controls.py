"""Controls of the fit report: as good as they can be, and different from what they are held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.fit import fit_layer, r2
from fffconvert.fit.neurons import Neurons
from fffconvert.fit.refine import split_off
from fffconvert.fitreport.controls import dense_control, kept_neurons, random_routing
from fffconvert.plan import FFFSpec

WIDTH, HIDDEN = 8, 32


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hidden() -> Neurons:
    out = draw(HIDDEN, WIDTH, seed=3)
    return Neurons(draw(1, HIDDEN, WIDTH, seed=1), draw(1, HIDDEN, seed=2), out, "gelu")


def block(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Neurons]:
    neurons = hidden()
    x = 3 * draw(tokens, WIDTH, seed=seed) + 5  # inputs far from standardised
    return x, neurons(x / 3) @ neurons.out + 7, neurons


def test_a_dense_control_learns_a_block_of_its_own_width():
    up, down = draw(4, WIDTH, seed=4), draw(WIDTH, 4, seed=5)
    x = 3 * draw(20_000, WIDTH) + 5
    y = F.gelu((x - 5) / 3 @ up.T) @ down.T + 7
    control, passes = dense_control(*split_off(x, y), 8, "gelu", passes=40)
    assert passes <= 40
    assert r2(y, control(x).detach()) > 0.95


def test_all_neurons_kept_are_the_block_and_fewer_keep_less():
    neurons = hidden()
    x = draw(4000, WIDTH)
    y = neurons(x) @ neurons.out + 7
    scores = [r2(y, kept_neurons(x, y, neurons, width)(x).detach()) for width in (4, 16, HIDDEN)]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.9999


def test_random_routing_keeps_all_but_the_hyperplanes():
    neurons = hidden()
    x = draw(4000, WIDTH)
    y = neurons(x) @ neurons.out
    layer = fit_layer(x, y, FFFSpec(WIDTH, WIDTH, 2, leaf_width=4, branch_outputs=True), neurons)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    other = random_routing(layer)
    for name, tensor in other.state_dict().items():
        assert torch.equal(before[name], layer.state_dict()[name])
        assert torch.equal(before[name], tensor) is (name != "fff_in_weight")
    torch.testing.assert_close(other.fff_in_weight.norm(dim=-1), layer.fff_in_weight.norm(dim=-1))
    assert r2(y, other(x).detach()) < r2(y, layer(x).detach())
