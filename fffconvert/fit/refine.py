"""Block-wise refinement: gradient steps on a block's own output, from the closed-form start, routing hard."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.fit.moments import token_weights

HELD_OUT = 0.05
"""Share of the tokens on which it is judged whether a pass still helps."""
BATCH = 2048
RATE = 1e-3
LEAST_RATE = 1.2e-4
WORTH = 0.003
"""Share of the error that a pass over the tokens must take away, lest the rate be halved."""
CLIP = 1.0


def train_block(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rate: float = RATE,
    passes: int = 12,
    seconds: float = math.inf,
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
        seconds: At most so long, but a pass at least.
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
    started, made = time.monotonic(), 0
    bar = tqdm(total=passes, desc="refine", unit="pass", leave=False, disable=None)
    with torch.enable_grad():
        while made < passes and optimiser.param_groups[0]["lr"] >= LEAST_RATE:
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
            if time.monotonic() - started > seconds:
                break
    bar.close()
    module.load_state_dict(kept)
    return made


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def _error(module: nn.Module, x: Tensor, y: Tensor, weight: Tensor) -> float:
    return float((weight * (module(x) - y).square().sum(1)).mean())
