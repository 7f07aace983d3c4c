"""Controls: layers that are dense, deleted or randomly routed by construction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fffconvert.controls import Control, frozen_parameters, make_control, randomly_routed
from fffconvert.controls import _control_layer as control_layer
from fffconvert.errors import FFFError
from fffconvert.fit import fit_layer
from fffconvert.fit.neurons import neurons_of
from fffconvert.locate import locate
from fffconvert.plan import FFFSpec


class Block(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.gate = nn.Linear(8, 32) if gated else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        hidden = nn.functional.silu(self.up(h))
        return x + self.down(hidden if self.gate is None else hidden * self.gate(h))


@pytest.fixture(params=[False, True], ids=["plain", "gated"])
def site_and_layer(request):
    torch.manual_seed(0)
    model = nn.Sequential(Block(request.param))
    site = locate(model, {"input": torch.randn(2, 5, 8)})[0]
    x = torch.randn(3000, 8)
    spec = FFFSpec(8, 8, 2, branch_outputs=True, leaf_width=3, leaf_gated=request.param, activation="silu")
    with torch.no_grad():
        y = site.dense()(x)
    return site, fit_layer(x, y, spec, neurons_of(site)), x, y


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


def test_deleted_gives_the_mean_whatever_comes(site_and_layer):
    site, layer, x, _ = site_and_layer
    with torch.no_grad():
        made = control_layer(site, layer, Control.DELETED, x)
        assert torch.equal(made(x), made.fff_bias.expand_as(x))
    trained = [
        n for n, _ in made.named_parameters() if n not in frozen_parameters(Control.DELETED, made.spec)
    ]
    assert trained == ["fff_bias"]


def test_random_routing_keeps_everything_but_the_hyperplanes_and_balances_them(site_and_layer):
    _, layer, x, _ = site_and_layer
    made = randomly_routed(layer, x)
    for (name, one), other in zip(layer.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(one, other) is (name not in ("fff_in_weight", "fff_in_bias"))
    torch.testing.assert_close(made.fff_in_weight.norm(dim=-1), layer.fff_in_weight.norm(dim=-1))
    _, _, leaf = torch.ops.fffconvert.cmm(x, *made.weights, made.spec.activation)
    counts = torch.bincount(leaf[:, 0], minlength=made.spec.leaves)
    assert counts.min() > 0.9 * len(x) / made.spec.leaves


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FFFError, match="is no conversion"):
        make_control(tmp_path, Control.DENSE)
    (tmp_path / "fffconvert.yaml").write_text("a: 1")
    with pytest.raises(FFFError, match="names no model"):
        make_control(tmp_path, Control.DENSE)
