"""Kept neurons: all of them are the block."""

from __future__ import annotations

import torch

from fffconvert.controls import kept_neurons
from fffconvert.fit import r2
from fffconvert.fit.neurons import Neurons


def test_all_neurons_kept_are_the_block_and_fewer_keep_less(neurons: Neurons):
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    y = neurons(x) @ neurons.out + 7
    scores = [r2(y, kept_neurons(x, y, neurons, width)(x).detach()) for width in (4, 16, len(neurons))]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.9999
