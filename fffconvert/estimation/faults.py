"""How much of a result's memory the system hands out anew each time: page faults, counted.

The C library decides by what was freed before whether it keeps memory or gives it back, so a process that has
already run something else would answer for that: run as `python -m fffconvert.estimation.faults`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import torch

RESULTS = tuple(1 << k for k in range(19, 28))
"""Bytes of the widest results, rising: the largest that was freed decides what is kept."""
ROUNDS = 4


def fresh_shares() -> list[tuple[float, float]]:
    """Share of the memory of results that is new each time: by bytes of the result."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True)
    return [(float(size), float(share)) for size, share in json.loads(done.stdout)]


def fresh_share(size: int) -> float:
    """The share in this process, for a feedforward block's tensors of which the widest has `size` bytes."""
    for _ in range(2):
        made = _block(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        _block(size)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return min(1.0, faults * resource.getpagesize() / (ROUNDS * made))


def _block(size: int) -> int:
    """Make the tensors of one layer, whose hidden layer is four times as wide; return their bytes."""
    narrow = size // 4
    residual = torch.zeros(narrow, dtype=torch.uint8)
    hidden = torch.ones(size, dtype=torch.uint8)
    hidden = hidden + 1
    out = torch.ones(narrow, dtype=torch.uint8)
    residual = residual + out
    return 2 * size + 3 * narrow


if __name__ == "__main__":
    sys.stdout.write(json.dumps([(size, fresh_share(size)) for size in RESULTS]))
