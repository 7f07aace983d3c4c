"""How long a call takes, at the token counts that a choice is made for."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

TOKENS = (1, 32, 512)
"""Token counts at which contestants are timed: generation, a sentence, a batch."""
CALLS = 9


@torch.inference_mode()
def times(call: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> tuple[float, ...]:
    """Median microseconds of one call for each input."""
    result = []
    for x in inputs:
        seconds = []
        for _ in range(CALLS):
            _wait(x)
            started = time.perf_counter()
            call(x)
            _wait(x)
            seconds.append(time.perf_counter() - started)
        result.append(1e6 * median(seconds[2:]))
    return tuple(result)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def size(measured: tuple[float, ...]) -> float:
    """One number for the times at several token counts: their geometric mean's logarithm."""
    return float(torch.tensor(measured, dtype=torch.float64).log().mean())
