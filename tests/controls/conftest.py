"""A block and the layer fitted to it; a block's neurons."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fffconvert.fit import fit_layer
from fffconvert.fit.neurons import Neurons, neurons_of
from fffconvert.location import locate
from fffconvert.planning import FFFSpec


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


@pytest.fixture
def neurons() -> Neurons:
    """32 neurons of a block of width 8."""

    def draw(*shape: int, seed: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return Neurons(draw(1, 32, 8, seed=1), draw(1, 32, seed=2), draw(32, 8, seed=3), "gelu")
