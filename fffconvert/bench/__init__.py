"""Benchmarks: a layer against the dense blocks that it replaces or equals in size."""

from __future__ import annotations

from fffconvert.bench.layer import bench_layer
from fffconvert.bench.settings import LayerBench

__all__ = ["LayerBench", "bench_layer"]
