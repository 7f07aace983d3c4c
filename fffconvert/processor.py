"""The machine's processor."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "sve",
    "bf16",
)
"""CPU features that kernels may use, as /proc/cpuinfo spells them (the last two on Arm)."""


@dataclass(frozen=True)
class Cpu:
    """The machine's processor.

    Attributes:
        model: Its name.
        cores: Logical cores.
        threads: Threads that torch uses.
        capability: The instruction set that torch's own kernels use.
        features: Those of `FEATURES` that it has.
    """

    model: str
    cores: int
    threads: int
    capability: str
    features: tuple[str, ...]


def cpu() -> Cpu:
    """Describe the processor, from /proc/cpuinfo where there is one."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
    return Cpu(
        model=fields.get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        features=tuple(feature for feature in FEATURES if feature in flags),
    )
