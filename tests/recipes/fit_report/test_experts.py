"""Clustered experts: planted groups are found, the width is kept to, all experts are the block."""

from __future__ import annotations

import torch
from torch import Tensor

from fffconvert.fit import r2
from fffconvert.fit.neurons import Neurons
from recipes.experiments.fit_report.experts import EXPERT, fit_experts

WIDTH, HIDDEN = 8, 128


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block() -> tuple[Tensor, Tensor, Neurons]:
    out = draw(HIDDEN, WIDTH, seed=3)
    neurons = Neurons(draw(1, HIDDEN, WIDTH, seed=1), draw(1, HIDDEN, seed=2), out, "gelu")
    x = draw(3000, WIDTH)
    return x, neurons(x) @ out + 5, neurons


def test_a_token_uses_so_many_neurons_and_experts_do_not_overlap():
    x, y, neurons = block()
    experts = fit_experts(x, y, neurons, 56)
    everyone = torch.cat([experts.shared, experts.members.flatten()])
    assert sorted(everyone.tolist()) == list(range(HIDDEN))
    on = (experts.hidden(x) != 0).sum(1)
    assert on.max() <= 56 + EXPERT  # what does not fill an expert is shared


def test_more_of_the_block_explains_more_of_it():
    x, y, neurons = block()
    scores = [r2(y, fit_experts(x, y, neurons, width)(x).detach()) for width in (28, 84, HIDDEN)]
    assert scores[0] < scores[1] < scores[2]


def test_neurons_that_fire_together_share_an_expert():
    groups, size = 4, 2 * EXPERT
    direction = torch.eye(WIDTH)[:groups].repeat_interleave(size, 0) * 4
    out = draw(groups * size, WIDTH, seed=3)
    neurons = Neurons(direction[None], torch.full((1, groups * size), -4.0), out, "relu")
    x = draw(6000, WIDTH)
    experts = fit_experts(x, neurons(x) @ out, neurons, size)
    group = experts.members // size
    assert (group == group.mode(1).values[:, None]).float().mean() > 0.75  # by chance some 0.4
