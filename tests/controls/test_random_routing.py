"""Random routing: all of the layer but its hyperplanes."""

from __future__ import annotations

import torch

from fffconvert.controls import randomly_routed
from fffconvert.fit import fit_layer, r2
from fffconvert.fit.neurons import Neurons
from fffconvert.planning import FFFSpec


def test_random_routing_keeps_everything_but_the_hyperplanes_and_balances_them(site_and_layer):
    _, layer, x, _ = site_and_layer
    made = randomly_routed(layer, x)
    for (name, one), other in zip(layer.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(one, other) is (name not in ("fff_in_weight", "fff_in_bias"))
    torch.testing.assert_close(made.fff_in_weight.norm(dim=-1), layer.fff_in_weight.norm(dim=-1))
    _, _, leaf = torch.ops.fffconvert.cmm(x, *made.weights, made.spec.activation)
    counts = torch.bincount(leaf[:, 0], minlength=made.spec.leaves)
    assert counts.min() > 0.9 * len(x) / made.spec.leaves


def test_without_tokens_only_the_directions_are_drawn(neurons: Neurons):
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    y = neurons(x) @ neurons.out
    layer = fit_layer(x, y, FFFSpec(8, 8, 2, leaf_width=4, branch_outputs=True), neurons)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    other = randomly_routed(layer)
    for name, tensor in other.state_dict().items():
        assert torch.equal(before[name], layer.state_dict()[name])
        assert torch.equal(before[name], tensor) is (name != "fff_in_weight")
    torch.testing.assert_close(other.fff_in_weight.norm(dim=-1), layer.fff_in_weight.norm(dim=-1))
    assert r2(y, other(x).detach()) < r2(y, layer(x).detach())
