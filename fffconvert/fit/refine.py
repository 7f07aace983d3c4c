"""Block-wise refinement: gradient steps on a block's own output, from the closed-form start, routing hard."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.fit.moments import token_weights
from fffconvert.tree import FFFLayer

HELD_OUT = 0.05
"""Share of the tokens on which it is judged whether a pass still helps."""
BATCH = 512
RATE = 0.01
"""First learning rate of a fitted layer, relative to the size of each row."""
HALVINGS = 4
"""The rate is halved at most so often."""
WORTH = 0.003
"""Share of the error that a pass over the tokens must take away, lest the rate be halved."""
CLIP = 1.0


def train_block(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    passes: int,
    seed: int = 0,
) -> int:
    """Train a module in a block's place by Adam on the error per token, for as long as it helps.

    The last part of the tokens is held out; the rate is halved where a pass over the others takes less than
    0.3 % of the error away, and the state of the best pass is kept: the start itself, if no pass helps.

    Args:
        module: Maps [tokens, d_in] to [tokens, d_out]; trained in place.
        x: [tokens, d_in], what the block was given.
        y: [tokens, d_out], what the block made of it.
        rate: First learning rate.
        passes: At most so many passes over the tokens.
        seed: Order of the tokens.

    Returns:
        How many passes were made.
    """
    weight = token_weights(y)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    held = order[: max(1, round(HELD_OUT * len(x)))]
    own = order[len(held) :] if len(order) > len(held) else held
    scale = y.var(0).sum().clamp(min=1e-30)
    optimiser = torch.optim.Adam(module.parameters(), lr=rate)
    best, kept = _error(module, x[held], y[held], weight[held]), _state(module)
    made = 0
    bar = tqdm(total=passes, desc="refine", unit="pass", leave=False, disable=None)
    with torch.enable_grad():
        while made < passes and optimiser.param_groups[0]["lr"] > rate / 2 ** (HALVINGS + 1):
            for part in torch.split(own[torch.randperm(len(own), generator=generator)], BATCH):
                optimiser.zero_grad(set_to_none=True)
                error = (module(x[part]) - y[part]).square().sum(1)
                loss = (weight[part] * error).mean() / scale
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), CLIP)
                optimiser.step()
            made += 1
            bar.update()
            error_now = _error(module, x[held], y[held], weight[held])
            if not error_now < best * (1 - WORTH):
                for group in optimiser.param_groups:
                    group["lr"] /= 2
            if error_now < best:
                best, kept = error_now, _state(module)
    bar.close()
    module.load_state_dict(kept)
    return made


def refine_layer(layer: FFFLayer, x: Tensor, y: Tensor, *, passes: int, rate: float = RATE) -> int:
    """Improve a fitted layer by gradient steps on the block's output; routing stays hard. In place.

    Args:
        layer: The layer, with the features on the last axis.
        x: [tokens, d_in], what the block was given.
        y: [tokens, d_out], what the block made of it.
        passes: At most so many passes over the tokens.
        rate: First learning rate, relative to the size of each row.

    Returns:
        How many passes were made.
    """
    relative = _Relative(layer)
    made = train_block(relative, x, y, rate=rate, passes=passes)
    with torch.no_grad():
        for name, tensor in relative.moved().items():
            layer.get_parameter(name).copy_(tensor)
    return made


class _Relative(nn.Module):
    """A layer whose rows move in steps relative to their size, which differs by orders of magnitude."""

    def __init__(self, layer: FFFLayer) -> None:
        super().__init__()
        self.layer = [layer]  # hidden from `parameters`
        self.start = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
        self.size = {name: _row_size(tensor) for name, tensor in self.start.items()}
        self.steps = nn.ParameterDict({name: torch.zeros_like(t) for name, t in self.start.items()})

    def moved(self) -> dict[str, Tensor]:
        """The layer's parameters as they are now."""
        return {name: start + self.size[name] * self.steps[name] for name, start in self.start.items()}

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer as it is now."""
        y: Tensor = torch.func.functional_call(self.layer[0], self.moved(), (x,))
        return y


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
