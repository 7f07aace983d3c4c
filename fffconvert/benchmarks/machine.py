"""The machine that was measured on, and whether it was quiet."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch

from fffconvert.processor import cpu

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
QUIET_LOAD = 0.5
"""Load average of the last minute above which other work runs, or has just ended."""
QUIET_JITTER = 1.15
"""80th percentile of equal pieces of work over the fastest one."""


def describe() -> dict[str, Any]:
    """Processor, versions and settings that times depend on."""
    words = THP.read_text().split() if THP.is_file() else []
    pages = next((word.strip("[]") for word in words if word.startswith("[")), "unknown")
    return {
        **dataclasses.asdict(cpu()),
        "host": platform.node(),
        "usable_cores": usable_cores(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "transparent_huge_pages": pages,
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float:
    """Load average of the last minute."""
    return os.getloadavg()[0]


def jitter(pieces: int = 60) -> float:
    """How unevenly equal pieces of work of a millisecond or so take: 80th percentile over the fastest."""
    times = []
    for _ in range(pieces):
        started = perf_counter_ns()
        sum(range(20_000))
        times.append(perf_counter_ns() - started)
    return float(np.percentile(times, 80)) / min(times)


def warnings(load_before: float, jitters: list[float], threads: tuple[int, ...]) -> list[str]:
    """What makes the figures doubtful, in sentences."""
    found = []
    if load_before > QUIET_LOAD:
        found.append(
            f"the load was {load_before:.1f} at the start: other work was running, or had just ended"
        )
    if max(jitters) > QUIET_JITTER:
        found.append(f"equal pieces of work took up to {max(jitters):.2f} times the fastest: not quiet")
    if max(threads) > usable_cores():
        found.append(f"{max(threads)} threads were measured on {usable_cores()} usable cores")
    return found
