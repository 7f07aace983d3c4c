"""Dense blocks of the conversion's active width: of the original's best neurons, or trained by Adam."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fffconvert.fit.leaves import choose_neurons
from fffconvert.fit.moments import centre, token_weights
from fffconvert.fit.neurons import Neurons
from fffconvert.fit.refine import Pair, train_block
from fffconvert.planning import FFFSpec
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.tree import FFFLayer

OFF = -1.0
"""Logit of a node that must not decide anything: every token goes left."""
DENSE_RATE = 4e-3
DENSE_BATCH = 512


@torch.no_grad()
def dense_layer(x: Tensor, y: Tensor, neurons: Neurons, width: int) -> FFFLayer:
    """A dense block of some of the original's neurons, which together explain it best, as an FFF layer.

    Plain neurons stand as trees of one node each, which is a dense block exactly. Gated ones need a leaf
    block; the node above it is dead, and not counted.

    Args:
        x: [tokens, d_in], what the block gets.
        y: [tokens, d_out], what it gives.
        neurons: The block's; the output rows of those that are kept are fitted anew, by ridge.
        width: How many to keep.
    """
    d_in, d_out = x.shape[1], y.shape[1]
    chosen, out, constant = choose_neurons(x, y, neurons, width, token_weights(y))
    kept = neurons[chosen]
    if not kept.gated:
        layer = FFFLayer(FFFSpec(d_in, d_out, 0, trees=width, activation=kept.activation))
        layer.fff_in_weight.copy_(kept.rows[0][:, None])
        layer.fff_in_bias.copy_(kept.bias[0][:, None])
        layer.fff_out_weight.copy_(out[:, None])
    else:
        layer = FFFLayer(
            FFFSpec(d_in, d_out, 0, leaf_width=width, leaf_gated=True, activation=kept.activation)
        )
        for parameter in layer.parameters():
            parameter.zero_()
        layer.fff_in_bias.fill_(OFF)
        state = layer.state_dict()
        for name, rows, bias in zip(("in", "gate"), kept.rows, kept.bias, strict=True):
            state[f"fff_leaf_{name}_weight"][0, 0] = rows
            state[f"fff_leaf_{name}_bias"][0, 0] = bias
        state["fff_leaf_out_weight"][0, 0] = out
    layer.fff_bias.copy_(constant)
    return layer


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
