"""Kept neurons: some of the block's own, the same for all tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fffconvert.fit.leaves import choose_neurons
from fffconvert.fit.moments import token_weights
from fffconvert.fit.neurons import Neurons


class KeptNeurons(nn.Module):
    """Some neurons of the original block with output rows fitted anew."""

    def __init__(self, neurons: Neurons, out: Tensor, constant: Tensor) -> None:
        super().__init__()
        self.neurons = neurons
        self.out, self.constant = nn.Parameter(out), nn.Parameter(constant)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: [tokens, d_model] to the same."""
        return torch.addmm(self.constant, self.neurons(x), self.out)


@torch.no_grad()
def kept_neurons(x: Tensor, y: Tensor, neurons: Neurons, width: int) -> KeptNeurons:
    """Keep the neurons that together explain the block best, one set for all tokens, refitted by ridge."""
    chosen, out, constant = choose_neurons(x, y, neurons, width, token_weights(y))
    return KeptNeurons(neurons[chosen], out, constant)
