"""The joint refit against a dense ridge solution, token by token walks and the layer itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fffconvert.fit.joint import HELD_OUT, LEAST_ENERGY, PRIOR_TOKENS, refit_outputs
from fffconvert.planning import FFFSpec
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.tree import FFFLayer

WIDTH, OUT = 6, 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def walked_design(x: Tensor, rows: Tensor, bias: Tensor, spec: FFFSpec) -> Tensor:
    """The design of each token by a walk in plain Python, in float64."""
    branches = 2 if spec.branch_outputs else 1
    outputs = branches * spec.nodes
    design = torch.zeros(len(x), outputs + spec.leaves * (branches - 1), dtype=torch.float64)
    for token, row in zip(x, design, strict=True):
        node = 0
        for _ in range(spec.depth + 1):
            s = token @ rows[node] + bias[node]
            right = int(s > 0)
            row[2 * node + right if branches == 2 else node] = ACTIVATIONS[spec.activation].fn(s)
            node = 2 * node + 1 + right
        if branches == 2:
            row[outputs + node - spec.nodes] = 1
    return design


def ridge_solution(design: Tensor, residual: Tensor, weight: Tensor, prior: float, ridge: Tensor) -> Tensor:
    weighted = design * weight[:, None].double()
    return torch.linalg.solve(weighted.T @ design + prior * ridge, weighted.T @ residual.double())


@pytest.mark.parametrize("branch", [True, False], ids=["branch", "paper"])
def test_it_is_the_ridge_solution_that_serves_left_out_tokens_best(branch: bool):
    tokens, spec = 700, FFFSpec(WIDTH, OUT, 3, branch_outputs=branch)
    x, weight = draw(tokens, WIDTH), draw(tokens, seed=4).abs() + 0.1
    rows, bias = draw(spec.nodes, WIDTH, seed=2), draw(spec.nodes, seed=3)
    design = walked_design(x, rows, bias, spec)
    residual = (design @ draw(design.shape[1], OUT, seed=5).double()).float() + draw(tokens, OUT, seed=1)
    held = torch.zeros(tokens, dtype=torch.bool)
    held[HELD_OUT // 2 :: HELD_OUT] = True
    own = design[~held]
    energy = (own.square() * weight[~held, None]).sum(0) / (own != 0).sum(0).clamp(min=1)
    ridge = torch.diag(energy.clamp(min=LEAST_ENERGY * float(energy[energy > 0].quantile(0.5))))

    def held_out_error(prior: float) -> float:
        found = ridge_solution(own, residual[~held], weight[~held], prior, ridge)
        left = residual[held] - design[held] @ found
        return float((weight[held, None] * left.square()).sum())

    prior = min(PRIOR_TOKENS, key=held_out_error)
    expected = ridge_solution(design, residual, weight, prior, ridge)
    left = residual - (design @ expected).float()
    out, constant = refit_outputs(x, residual, weight, rows, bias, spec)
    outputs = spec.nodes * (2 if branch else 1)
    torch.testing.assert_close(out.double(), expected[:outputs], rtol=1e-3, atol=1e-4)
    assert constant.shape == (spec.leaves, OUT)
    if branch:
        torch.testing.assert_close(constant.double(), expected[outputs:], rtol=1e-3, atol=1e-4)
    else:
        assert not constant.any()
    torch.testing.assert_close(residual, left, rtol=1e-4, atol=1e-4)


def test_a_handful_of_tokens_changes_nothing():
    spec = FFFSpec(WIDTH, OUT, 3, branch_outputs=True)
    rows, bias = draw(spec.nodes, WIDTH, seed=2), draw(spec.nodes, seed=3)
    for tokens in (1, 5):
        residual = draw(tokens, OUT, seed=1)
        before = residual.clone()
        out, constant = refit_outputs(draw(tokens, WIDTH), residual, torch.ones(tokens), rows, bias, spec)
        assert not out.any()
        assert not constant.any()
        assert torch.equal(residual, before)


@torch.no_grad()
def test_the_layer_computes_what_was_subtracted():
    spec = FFFSpec(WIDTH, OUT, 4, branch_outputs=True)
    x = draw(500, WIDTH)
    y = x @ draw(WIDTH, OUT, seed=1)
    layer, residual = FFFLayer(spec), y.clone()
    rows, bias = draw(spec.nodes, WIDTH, seed=2), draw(spec.nodes, seed=3)
    out, constant = refit_outputs(x, residual, torch.ones(500), rows, bias, spec)
    layer.fff_in_weight[0], layer.fff_in_bias[0] = rows, bias
    layer.fff_out_weight[0], layer.fff_leaf_constant[0] = out, constant
    layer.fff_bias.zero_()
    assert out.any()
    torch.testing.assert_close(layer(x), y - residual, rtol=1e-4, atol=1e-4)


def test_a_second_refit_finds_little_more():
    spec = FFFSpec(WIDTH, OUT, 3, branch_outputs=True)
    x = draw(4000, WIDTH)
    residual = x @ draw(WIDTH, OUT, seed=1)
    rows, bias = draw(spec.nodes, WIDTH, seed=2), draw(spec.nodes, seed=3)
    first, _ = refit_outputs(x, residual, torch.ones(4000), rows, bias, spec)
    second, _ = refit_outputs(x, residual, torch.ones(4000), rows, bias, spec)
    assert second.norm() < 0.1 * first.norm()
