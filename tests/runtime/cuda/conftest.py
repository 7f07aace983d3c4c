from __future__ import annotations

import pytest
from runtime.cuda.emulation import StandIn

from fffconvert.runtime import cupy_kernels


@pytest.fixture
def stand_in(monkeypatch):
    """Lets the launch code work on CPU tensors: the emulation in CuPy's place, a number for the stream."""
    cupy = StandIn()
    monkeypatch.setattr(cupy_kernels, "_cupy", lambda: cupy)
    monkeypatch.setattr(cupy_kernels, "_stream", lambda device: cupy.stream)
    caches = (cupy_kernels.card, cupy_kernels._kernel, cupy_kernels._module)
    for cache in caches:
        cache.cache_clear()
    yield cupy
    for cache in caches:
        cache.cache_clear()
