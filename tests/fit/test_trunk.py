"""The trunk against reduced-rank regression computed another way, from the singular values of the data."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from fffconvert.fit import fit_layer, r2
from fffconvert.fit import trunk as module
from fffconvert.fit.moments import Principal, centre
from fffconvert.fit.trunk import fit_trunk
from fffconvert.planning import FFFSpec

TOKENS, D_IN, D_OUT = 3000, 12, 9


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, D_IN, generator=g) @ torch.randn(D_IN, D_IN, generator=g)
    y = torch.tanh(x @ torch.randn(D_IN, D_OUT, generator=g)) + 0.3 * torch.randn(TOKENS, D_OUT, generator=g)
    return x * torch.logspace(-3, 3, D_IN), y


def fitted(x: torch.Tensor, y: torch.Tensor, rank: int, weight: torch.Tensor) -> np.ndarray:
    principal, z = Principal.of(x, weight)
    inner, outer = fit_trunk(z, principal.variance, centre(y, weight)[1], rank, weight)
    return (z.double() @ inner.T @ outer).numpy()


@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal weights", "weighted"])
def test_equals_the_optimum(monkeypatch: pytest.MonkeyPatch, rank: int, weighted: bool):
    monkeypatch.setattr(module, "RIDGE", 0.0)
    x, y = data()
    weight = (
        torch.rand(TOKENS, generator=torch.Generator().manual_seed(1)) if weighted else torch.ones(TOKENS)
    )
    weight /= weight.mean()
    root = weight.double().sqrt().numpy()[:, None]
    xd, yd = x.double().numpy(), y.double().numpy()
    xd, yd = xd - np.average(xd, 0, weight), yd - np.average(yd, 0, weight)
    # Eckart-Young: the best approximation of rank r of the projection of y on the span of x.
    u = np.linalg.svd(root * xd, full_matrices=False)[0]
    p, s, q = scipy.linalg.svd(u @ (u.T @ (root * yd)), full_matrices=False)
    best = (p[:, :rank] * s[:rank]) @ q[:rank]
    found = root * fitted(x, y, rank, weight)
    np.testing.assert_allclose(found, best, atol=2e-4 * np.abs(best).max())


def test_the_ridge_is_that_of_standardised_inputs():
    x, y = data()
    xd, yd = x.double().numpy(), y.double().numpy()
    xs, yd = (xd - xd.mean(0)) / xd.std(0), yd - yd.mean(0)
    ridge = module.RIDGE * D_IN * np.eye(D_IN)
    expected = xs @ scipy.linalg.solve(xs.T @ xs + ridge, xs.T @ yd, assume_a="pos")
    np.testing.assert_allclose(fitted(x, y, D_OUT, torch.ones(TOKENS)), expected, atol=1e-3)


def test_directions_beyond_the_outputs_are_zero():
    x, y = data()
    weight = torch.ones(TOKENS)
    principal, z = Principal.of(x, weight)
    inner, outer = fit_trunk(z, principal.variance, centre(y, weight)[1], 40, weight)
    assert inner.shape == (40, D_IN)
    assert outer.shape == (40, D_OUT)
    assert not inner[D_OUT:].any()
    assert not outer[D_OUT:].any()
    torch.testing.assert_close(outer[:D_OUT] @ outer[:D_OUT].T, torch.eye(D_OUT, dtype=torch.float64))


def test_a_layer_recovers_a_linear_block_of_its_rank():
    x, _ = data()
    g = torch.Generator().manual_seed(2)
    map_ = torch.randn(D_IN, 3, generator=g) @ torch.randn(3, D_OUT, generator=g)
    y = x / torch.logspace(-3, 3, D_IN) @ map_ + 5
    layer = fit_layer(x, y, FFFSpec(D_IN, D_OUT, depth=0, trunk=3))
    assert r2(y, layer(x).detach()) > 0.9999
