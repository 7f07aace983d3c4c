"""Greedy trees: planted functions recovered, path constants, ties with the layer, ugly inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fffconvert.errors import FFFError
from fffconvert.fit import fit_layer, r2, token_weights
from fffconvert.fit.grow import grow_trees
from fffconvert.fit.moments import Principal, centre, second_moment
from fffconvert.planning import FFFSpec
from fffconvert.runtime.activations import ACTIVATIONS


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense_block(tokens: int, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = draw(tokens, width, seed=seed) @ draw(width, width, seed=100) * width**-0.5
    hidden = F.gelu(2 * x @ draw(width, 4 * width, seed=101) * width**-0.5 + draw(4 * width, seed=102))
    return x, hidden @ draw(4 * width, width, seed=103)


FORMS = {"branch": True, "paper": False}
forms = pytest.mark.parametrize("branch", FORMS.values(), ids=FORMS)


def fit(x: Tensor, y: Tensor, **options: int | bool | str) -> Tensor:
    """What the fitted layer makes of x."""
    layer = fit_layer(x, y, FFFSpec(x.shape[1], y.shape[1], **options))
    with torch.no_grad():
        return layer(x)


def test_a_planted_tree_is_recovered():
    x = draw(4000, 6)
    planted = torch.linalg.qr(draw(6, 3, seed=1)).Q.T
    root, left, right = (x @ planted.T > 0).T
    # The root's jump is the largest, so that greed takes it first.
    y = torch.stack([6.0 * root, 4.0 * (~root & left), 4.0 * (root & right)], 1)
    residual = y - y.mean(0)
    total = residual.square().sum()
    spec = FFFSpec(6, 3, 1, branch_outputs=True)
    (tree,) = grow_trees(x.clone(), x.var(0), residual, torch.ones(4000), spec)
    found = F.normalize(tree.rows, dim=1)
    if found[0] @ planted[0] < 0:
        found = found[[0, 2, 1]]
    assert (found * planted).sum(1).abs().min() > 0.98
    assert residual.square().sum() < 0.2 * total  # the root alone leaves 0.4


def test_a_piecewise_linear_function_needs_one_node():
    x, direction, out = draw(3000, 5), F.normalize(draw(5, seed=1), dim=0), draw(4, 4, seed=2)
    s = x @ direction
    right, left = (s > s.mean()).float(), (s <= s.mean()).float()
    y = torch.stack([right, left, right * s, left * s], 1) @ out
    assert r2(y, fit(x, y, depth=0, branch_outputs=True)) > 0.92
    assert r2(y, fit(x, y, depth=0)) < 0.7


@forms
@pytest.mark.parametrize("trunk", [0, 2], ids=["", "trunk"])
def test_what_is_explained_never_falls_with_depth(branch: bool, trunk: int):
    x, y = dense_block(3000)
    scores = [r2(y, fit(x, y, depth=depth, trunk=trunk, branch_outputs=branch)) for depth in range(7)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 0.2


@forms
def test_more_trees_explain_more_of_new_tokens(branch: bool):
    x, y = dense_block(6000)
    new_x, new_y = dense_block(2000, seed=7)
    scores = []
    for trees in (1, 2, 8):
        layer = fit_layer(x, y, FFFSpec(16, 16, 3, trees=trees, branch_outputs=branch))
        scores.append(r2(new_y, layer(new_x).detach()))
    assert scores[0] + 0.01 < scores[1] < scores[2] - 0.1


def test_branch_outputs_and_depth_pay_on_new_tokens():
    x, y = dense_block(20_000)
    new_x, new_y = dense_block(2000, seed=7)

    def score(**options: int | bool) -> float:
        return r2(new_y, fit_layer(x, y, FFFSpec(16, 16, **options))(new_x).detach())

    deep = score(depth=7, branch_outputs=True)
    assert deep > score(depth=7) + 0.02
    assert deep > score(depth=3, branch_outputs=True) + 0.05


def test_pure_noise_is_left_alone():
    x, y = draw(4000, 8), draw(4000, 8, seed=1)
    new = draw(2000, 8, seed=2)
    layer = fit_layer(x, y, FFFSpec(8, 8, 8, branch_outputs=True))
    # Without shrinkage 512 leaves of 8 tokens would add a tenth of the variance and more.
    assert layer(new).detach().square().mean() < 0.1


@forms
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_can_be_fitted(branch: bool, activation: str):
    x, y = dense_block(2000)
    assert r2(y, fit(x, y, depth=4, branch_outputs=branch, activation=activation)) > 0.2


@forms
def test_the_layer_leaves_what_growth_left(branch: bool):
    """The residual inside the fit is that of the finished layer, on every token."""
    x, y = dense_block(500)
    spec = FFFSpec(16, 16, 4, trees=3, branch_outputs=branch)
    weight = token_weights(y)
    principal, z = Principal.of(x, weight)
    residual = centre(y, weight)[1]
    list(grow_trees(z, principal.variance, residual, weight.clone(), spec))
    left = (y - fit(x, y, depth=4, trees=3, branch_outputs=branch)).square().sum(1)
    expected = residual.square().sum(1).sort().values
    torch.testing.assert_close(left.sort().values, expected, rtol=1e-3, atol=1e-3)


@forms
def test_the_same_again(branch: bool):
    x, y = dense_block(1000)
    spec = FFFSpec(16, 16, 5, trees=2, trunk=3, branch_outputs=branch)
    first, second = fit_layer(x, y, spec).state_dict(), fit_layer(x, y, spec).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_arguments_stay_as_they_were():
    x, y = dense_block(500)
    kept = x.clone(), y.clone()
    fit_layer(x, y, FFFSpec(16, 16, 3, trees=2, trunk=3, branch_outputs=True))
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


UGLY = {
    "one token": (draw(1, 5), draw(1, 4)),
    "two tokens": (draw(2, 5), draw(2, 4)),
    "fewer tokens than nodes": (draw(20, 5), draw(20, 4)),
    "one token repeated": (draw(1, 5).repeat(50, 1), draw(1, 4).repeat(50, 1)),
    "one input, many outputs": (draw(1, 5).repeat(50, 1), draw(50, 4)),
    "constant output": (draw(50, 5), torch.full((50, 4), 3.0)),
    "zeros": (torch.zeros(50, 5), torch.zeros(50, 4)),
    "rank one": (draw(200, 1) @ draw(1, 5, seed=1), draw(200, 4)),
    "constant features": (torch.cat([draw(200, 2), torch.full((200, 3), 1e6)], 1), draw(200, 4)),
    "one input feature, one output": (draw(200, 1), draw(200, 1, seed=1)),
    "one token a million times the others": (
        torch.cat([draw(200, 5), 1e6 * draw(1, 5)]),
        torch.cat([draw(200, 4), 1e6 * draw(1, 4)]),
    ),
    "tiny": (1e-12 * draw(200, 5), 1e-12 * draw(200, 4)),
    "huge": (1e12 * draw(200, 5), 1e12 * draw(200, 4)),
    "half of the tokens silent": (draw(200, 5), draw(200, 4) * (torch.arange(200) < 80)[:, None]),
}


@forms
@pytest.mark.parametrize(("x", "y"), UGLY.values(), ids=UGLY)
def test_ugly_activations_give_a_usable_layer(branch: bool, x: Tensor, y: Tensor):
    y_hat = fit(x, y, depth=4, trees=2, trunk=2, branch_outputs=branch)
    assert y_hat.isfinite().all()
    scale = (y - y.mean(0)).square().sum() + y.square().sum() * 1e-8
    assert (y - y_hat).square().sum() <= 1.05 * scale


def test_nodes_without_tokens_still_route_and_can_be_trained():
    x, y = dense_block(60)
    layer = fit_layer(x, y, FFFSpec(16, 16, 7, branch_outputs=True))
    assert layer.fff_in_weight.abs().sum(-1).min() > 0
    layer(x).square().sum().backward()
    visited = layer.fff_out_weight.grad[0].abs().sum(-1).view(-1, 2).amax(1) > 0
    rows, parents = layer.fff_in_weight[0, 1:], (torch.arange(1, 255) - 1) // 2
    unfitted = (rows == layer.fff_in_weight[0, parents]).all(1)
    assert (visited[1:] & unfitted).any()


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (draw(9, 5), draw(9, 4), {"leaf_width": 2}, "leaf_width is 2; expected branch outputs"),
        (draw(9, 6), draw(9, 4), {}, r"found activations \[9, 6\] and \[9, 4\]; expected \[tokens, 5\]"),
        (draw(9, 5), draw(8, 4), {}, r"\[8, 4\]"),
        (draw(0, 5), draw(0, 4), {}, "at least one token"),
        (torch.full((9, 5), torch.nan), draw(9, 4), {}, "NaN or infinite"),
        (draw(9, 5), torch.full((9, 4), torch.inf), {}, "NaN or infinite"),
    ],
    ids=["leaf blocks", "width", "tokens differ", "no token", "NaN", "infinite"],
)
def test_what_cannot_be_fitted_is_refused(x: Tensor, y: Tensor, options: dict[str, int], message: str):
    with pytest.raises(FFFError, match=message) as error:
        fit_layer(x, y, FFFSpec(5, 4, 2, **options))
    assert "\n" not in str(error.value)


def test_a_large_offset_costs_no_accuracy():
    x, y = dense_block(4000)
    # Powers of two that x and y are rounded to, so that the offset itself loses nothing.
    x, y = (x * 1024).round() / 1024, (y * 1024).round() / 1024
    spec = FFFSpec(16, 16, 5, trunk=2, branch_outputs=True)
    plain, shifted = fit_layer(x, y, spec).double(), fit_layer(x + 4096, y + 4096, spec).double()
    x, y = x.double(), y.double()
    plain_score, score = r2(y, plain(x).detach()), r2(y + 4096, shifted(x + 4096).detach())
    assert score == pytest.approx(plain_score, abs=0.01)


def test_moments_are_those_of_float64():
    x, weight = draw(20_000, 6) + 3000, draw(20_000, seed=1).abs()
    weight /= weight.mean()
    mean, centred = centre(x, weight)
    exact = (weight.double() @ x.double()) / len(x)
    torch.testing.assert_close(mean, exact, rtol=1e-12, atol=0)
    covariance = torch.cov(x.double().T, correction=0, aweights=weight.double())
    torch.testing.assert_close(second_moment(centred, centred, weight), covariance, rtol=0, atol=1e-5)


def test_principal_coordinates_are_uncorrelated_and_unscaled():
    x = draw(5000, 6) @ draw(6, 6, seed=1) * torch.logspace(-3, 6, 6) + 7
    weight = torch.ones(5000)
    principal, z = Principal.of(x, weight)
    torch.testing.assert_close(
        second_moment(z, z, weight).float(), principal.variance.diag(), atol=1e-4, rtol=0
    )
    assert principal.variance.mean() == pytest.approx(1, abs=1e-4)
    functional = draw(6, seed=2)
    expected = z.double() @ functional.double()
    torch.testing.assert_close(
        (x.double() - principal.mean) @ principal.rows(functional), expected, atol=1e-4, rtol=0
    )


def test_no_token_outweighs_the_others():
    y = draw(1000, 8)
    y[:5] *= 1000
    weight = token_weights(y)
    error = weight * y.square().sum(1)
    assert weight.mean() == pytest.approx(1)
    assert error[:5].sum() < 0.02 * error.sum()
    assert weight[5:].min() > 0.2 * weight[5:].max()


@pytest.mark.parametrize(
    ("y", "y_hat", "expected"),
    [
        ([[1.0], [3.0]], [[1.0], [3.0]], 1.0),
        ([[1.0], [3.0]], [[2.0], [2.0]], 0.0),
        ([[1.0], [3.0]], [[1.0], [2.0]], 0.5),
        ([[1.0], [3.0]], [[3.0], [1.0]], -3.0),
        ([[2.0], [2.0]], [[2.0], [2.0]], 1.0),
        ([[2.0], [2.0]], [[2.0], [3.0]], 0.0),
    ],
    ids=["exact", "mean", "half", "worse than the mean", "constant, exact", "constant, missed"],
)
def test_r2(y: list[list[float]], y_hat: list[list[float]], expected: float):
    assert r2(torch.tensor(y), torch.tensor(y_hat)) == pytest.approx(expected)
