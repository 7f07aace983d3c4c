"""Keep freed memory mapped: where outputs are large, fresh pages cost more than the arithmetic."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # constants of glibc's mallopt
LARGEST = 32 << 20
"""Bytes up to which a tensor's memory is kept; glibc allows no more on 64-bit machines."""
KEPT = 2**31 - 1
"""Bytes at the heap's end that are kept."""


def keep_freed_memory() -> bool:
    """Have glibc give freed tensors' memory to the next ones, instead of back to the system.

    This holds for the process from now on; it then keeps about as much as its largest call has taken, as
    runtimes with an arena of their own do.

    Returns:
        Whether it can be asked for: only of glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
