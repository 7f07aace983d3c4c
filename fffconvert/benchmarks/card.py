"""The GPU that is measured on: what it is, how fast its memory is, and how its calls are timed."""

from __future__ import annotations

import datetime
import importlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fffconvert.benchmarks.dense import Call, DenseFFN
from fffconvert.benchmarks.timing import Contestant, measure

COPIED_BYTES = 1 << 28
PUBLISHED = "3.15x and 4.1x over a fused dense block (arXiv 2311.10770)"


def synchronize() -> None:
    """Wait until the device has done all that was asked of it."""
    torch.cuda.synchronize()


@dataclass(frozen=True)
class Card:
    """Where calls run, and how to wait for them.

    Attributes:
        device: A device of torch.
        wait: Returns when the device has done all that was asked of it.
    """

    device: str = "cuda"
    wait: Callable[[], None] = synchronize

    def contestant(self, call: Callable[[Any], Any], inputs: Sequence[Any]) -> Contestant:
        """A call that is timed from an idle device until the device is idle again."""

        def waited(x: Any) -> Any:
            result = call(x)
            self.wait()
            return result

        return Contestant(waited, inputs, lambda _: self.wait())

    def copy_gb_s(self) -> float:
        """Bytes per second that copying moves, read and written, in 10^9."""
        source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copy = self.contestant(target.copy_, [source])
        median = measure({"copy": copy}, seconds=0.1, repeats=21)["copy"].median_us
        return 2 * source.numel() / median / 1e3


def describe() -> dict[str, Any]:
    """The card, its driver, versions and the date; `peak_gb_s` is null if torch does not know the clock."""
    cupy = importlib.import_module("cupy")
    card = torch.cuda.get_device_properties(0)
    clock, width = (getattr(card, name, None) for name in ("memory_clock_rate", "memory_bus_width"))
    return {
        "card": card.name,
        "compute_capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_gib": round(card.total_memory / 2**30, 1),
        # kHz, two transfers a cycle, bits
        "peak_gb_s": round(2 * clock * width / 8 / 1e6, 1) if clock and width else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        "cupy": cupy.__version__,
        "driver_cuda": cupy.cuda.runtime.driverGetVersion(),
        "python": platform.python_version(),
    }


def fused(block: DenseFFN) -> Call:
    """The block with cuBLAS's linear and GELU in one call; on CUDA that is GELU's tanh form."""
    up, down = block.dense_up, block.dense_down

    def call(x: Tensor) -> Tensor:
        hidden = torch.ops.aten._addmm_activation(up.bias, x, up.weight.T, use_gelu=True)
        return torch.addmm(down.bias, hidden, down.weight.T)

    return call
