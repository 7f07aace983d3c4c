"""Benchmarks: a layer against dense blocks, a whole model against what it would otherwise run on.

The names below are imported on first use: processes that measure other runtimes must not carry torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fffconvert.benchmarks.layer import bench_layer
    from fffconvert.benchmarks.model.run import bench

_HOMES = {"bench": "model.run", "bench_layer": "layer"}
__all__ = ["bench", "bench_layer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
