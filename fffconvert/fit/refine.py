"""Block-wise refinement: gradient steps on a block's own output, from the closed-form start, routing hard."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.fit.moments import Principal, token_weights
from fffconvert.tree import FFFLayer

HELD_OUT = 0.05
"""Share of the tokens on which it is judged whether a pass still helps."""
BATCH, LEAST_BATCH, STEPS = 2048, 128, 200
"""Tokens of a step: as many as give so many steps a pass, within limits."""
RATE = 0.003
"""First learning rate of a fitted layer, relative to the size of each row."""
HALVINGS = 4
"""The rate is halved at most so often."""
WORTH = 0.003
"""Share of the error that a pass over the tokens must take away, lest the rate be halved."""
CLIP = 1.0
BETAS = (0.9, 0.99)
FLOOR = 1e-3
"""Variance under which an input is not enlarged any further, relative to the largest."""
TINY = 1e-30
ROWS = {
    "fff_in_weight": "fff_in_bias",
    "fff_leaf_in_weight": "fff_leaf_in_bias",
    "fff_leaf_gate_weight": "fff_leaf_gate_bias",
}
"""Rows over the inputs, and their biases."""


Pair: TypeAlias = tuple[Tensor, Tensor]
"""What a block was given, [tokens, d_in], and what it made of it, [tokens, d_out]."""


def split_off(x: Tensor, y: Tensor) -> tuple[Pair, Pair]:
    """Part tokens into those to train on and the last ones, on which it is judged whether training helps.

    Whatever is to be refined must not have been fitted on the latter either: what has seen them looks better
    there than it is, and no step would seem to help.

    Args:
        x: [tokens, d_in], what the block was given.
        y: [tokens, d_out], what the block made of it.
    """
    own = len(x) - max(1, round(HELD_OUT * len(x)))
    return ((x[:own], y[:own]), (x[own:], y[own:])) if own else ((x, y), (x, y))


def train_block(
    module: nn.Module,
    own: Pair,
    held: Pair,
    *,
    rate: float,
    batch: int,
    passes: int,
    seed: int = 0,
) -> int:
    """Train a module in a block's place by Adam on the error per token, for as long as it helps.

    The rate is halved where a pass over the tokens takes less than 0.3 % of the held-out error away, and the
    state of the best pass is kept: the start itself, if no pass helps.

    Args:
        module: Maps [tokens, d_in] to [tokens, d_out]; trained in place.
        own: The block's inputs and outputs.
        held: The same of other tokens, on which nothing was fitted.
        rate: First learning rate.
        batch: Tokens of a step.
        passes: At most so many passes over the tokens.
        seed: Order of the tokens.

    Returns:
        How many passes were made.
    """
    x, y = own
    weight, held_weight = token_weights(y), token_weights(held[1])
    generator = torch.Generator().manual_seed(seed)
    scale = y.var(0).sum().clamp(min=1e-30)
    optimiser = torch.optim.Adam(module.parameters(), lr=rate, betas=BETAS)
    best, kept = _error(module, *held, held_weight), _state(module)
    made = 0
    bar = tqdm(total=passes, desc="refine", unit="pass", leave=False, disable=None)
    with torch.enable_grad():
        while made < passes and optimiser.param_groups[0]["lr"] > rate / 2 ** (HALVINGS + 1):
            for part in torch.split(torch.randperm(len(x), generator=generator), batch):
                optimiser.zero_grad(set_to_none=True)
                error = (module(x[part]) - y[part]).square().sum(1)
                loss = (weight[part] * error).mean() / scale
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), CLIP)
                optimiser.step()
            made += 1
            bar.update()
            error_now = _error(module, *held, held_weight)
            if not error_now < best * (1 - WORTH):
                for group in optimiser.param_groups:
                    group["lr"] /= 2
            if error_now < best:
                best, kept = error_now, _state(module)
    bar.close()
    module.load_state_dict(kept)
    return made


def refine_layer(layer: FFFLayer, own: Pair, held: Pair, *, passes: int, rate: float = RATE) -> int:
    """Improve a fitted layer by gradient steps on the block's output; routing stays hard. In place.

    Args:
        layer: The layer, with the features on the last axis.
        own: The block's inputs and outputs.
        held: The same of other tokens, on which the layer was not fitted.
        passes: At most so many passes over the tokens.
        rate: First learning rate, relative to the size of each row.

    Returns:
        How many passes were made.
    """
    x, y = own
    principal, z = Principal.of(x, token_weights(y))
    scale = (principal.variance + FLOOR * principal.variance.max()).clamp(min=TINY).rsqrt()
    whitened = _Whitened(layer, principal, scale.double())
    batch = min(BATCH, max(LEAST_BATCH, len(x) // STEPS))
    held_z = (held[0] - principal.mean.float()) @ principal.axes.float() * scale
    made = train_block(whitened, (z.mul_(scale), y), (held_z, held[1]), rate=rate, batch=batch, passes=passes)
    with torch.no_grad():
        for name, tensor in whitened.in_place().items():
            layer.get_parameter(name).copy_(tensor)
    return made


class _Whitened(nn.Module):
    """A layer over whitened inputs, whose rows move in steps relative to their size.

    Inputs differ in size by orders of magnitude, and so do rows; in these coordinates one rate suits all.
    """

    def __init__(self, layer: FFFLayer, principal: Principal, scale: Tensor) -> None:
        super().__init__()
        self.layer = [layer]  # hidden from `parameters`
        self.principal, self.scale = principal, scale
        # x = mean + z / scale @ inverse, in float64, so that what does not move comes back as it was.
        self.inverse = torch.linalg.pinv(principal.axes)
        self.original = {name: p.detach().clone() for name, p in layer.named_parameters()}
        self.start = {name: self._whiten(name, tensor) for name, tensor in self.original.items()}
        self.size = {name: _row_size(tensor) for name, tensor in self.start.items()}
        for name in self.start:
            if name in ROWS:  # a bias moves as far as its row does
                self.size[ROWS[name]] = torch.linalg.vector_norm(self.start[name], dim=-1)
        self.steps = nn.ParameterDict({name: torch.zeros_like(t) for name, t in self.start.items()})

    def _whiten(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter as one over whitened inputs."""
        if name in ROWS or name == "fff_trunk_in":
            whitened: Tensor = tensor.double() @ self.inverse.T / self.scale
            return whitened.float()
        if name in ROWS.values():
            rows = next(self.original[row] for row, bias in ROWS.items() if bias == name)
            return (tensor.double() + rows.double() @ self.principal.mean).float()
        return tensor.clone()

    def _moved(self) -> dict[str, Tensor]:
        """The parameters over whitened inputs as they are now."""
        return {name: start + self.size[name] * self.steps[name] for name, start in self.start.items()}

    def forward(self, z: Tensor) -> Tensor:
        """Compute the layer as it is now, from whitened inputs."""
        y: Tensor = torch.func.functional_call(self.layer[0], self._moved(), (z,))
        return y

    def in_place(self) -> dict[str, Tensor]:
        """The parameters over the original inputs as they are now."""
        moved = {name: self.size[name].double() * step.double() for name, step in self.steps.items()}
        found = {}
        for name, original in self.original.items():
            change = moved[name]
            if name in ROWS or name == "fff_trunk_in":
                change = self.principal.rows(change * self.scale)
            found[name] = original.double() + change
        for row, bias in ROWS.items():
            if row in found:
                turned = found[row] - self.original[row].double()
                found[bias] -= turned @ self.principal.mean
        return {name: tensor.float() for name, tensor in found.items()}


def _row_size(tensor: Tensor) -> Tensor:
    """Root mean square of each row, where there are rows; never much below the mean of all."""
    if tensor.dim() > 2:
        rows = tensor.square().mean(-1, keepdim=True).sqrt()
    else:
        rows = tensor.abs()
    return (rows + 0.1 * rows.mean()).expand_as(tensor)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def _error(module: nn.Module, x: Tensor, y: Tensor, weight: Tensor) -> float:
    return float((weight * (module(x) - y).square().sum(1)).mean())
