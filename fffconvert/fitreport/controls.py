"""What a conversion is held against: dense blocks trained by Adam, kept neurons, random routing."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fffconvert.fit.leaves import choose_neurons
from fffconvert.fit.moments import centre, token_weights
from fffconvert.fit.neurons import Neurons
from fffconvert.fit.refine import Pair, train_block
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.tree import FFFLayer

DENSE_RATE = 4e-3
DENSE_BATCH = 512


class DenseControl(nn.Module):
    """A plain block of a given width: linear, activation, linear."""

    def __init__(self, d_model: int, width: int, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, width)
        self.down = nn.Linear(width, d_model)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: [..., d_model] to the same."""
        y: Tensor = self.down(ACTIVATIONS[self.activation].fn(self.up(x)))
        return y


def dense_control(
    own: Pair, held: Pair, width: int, activation: str, *, passes: int, seed: int = 0
) -> tuple[DenseControl, int]:
    """Train a dense block of a given width by Adam, on the tokens and the loss of the conversion.

    The output bias starts at the mean output and the inputs are standardised by the first layer's start, so
    that no pass is spent on finding either.

    Args:
        own: The block's inputs and outputs.
        held: The same of other tokens, by which it is told when to stop.
        width: Neurons.
        activation: A key of `ACTIVATIONS`.
        passes: Passes over the tokens at most.
        seed: Start and order.

    Returns:
        The block, and how many passes it was trained for.
    """
    x, y = own
    weight = token_weights(y)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        control = DenseControl(x.shape[1], width, activation)
    mean, centred = centre(x, weight)
    spread = (weight @ centred.square() / len(x)).sqrt().clamp(min=1e-6)
    with torch.no_grad():
        control.up.weight /= spread
        control.up.bias.sub_(control.up.weight @ mean.float())
        control.down.bias.copy_(weight @ y / len(y))
        control.down.weight *= float((weight @ (y - control.down.bias).square() / len(y)).mean().sqrt())
    return control, train_block(
        control, own, held, rate=DENSE_RATE, batch=DENSE_BATCH, passes=passes, seed=seed
    )


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


@torch.no_grad()
def random_routing(layer: FFFLayer, seed: int = 0) -> FFFLayer:
    """The layer with its hyperplanes' directions drawn anew, of the same lengths; all else is kept."""
    layer = copy.deepcopy(layer)
    rows = layer.fff_in_weight
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(
        rows
    )
    rows.copy_(drawn * rows.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
    return layer
