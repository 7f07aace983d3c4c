"""Who takes part for one workload, number of threads and number of tokens."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.benchmarks import dense
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.benchmarks.timing import Contestant, Timing, measure
from fffconvert.benchmarks.workload import Workload
from fffconvert.deployment import deploy
from fffconvert.tree import FFFLayer

DENSE = ("block", "tree_size")


@dataclass(frozen=True)
class Entry:
    """One contestant and what it is.

    Attributes:
        backend: "cpu", "cupy", "reference", "block" (the dense one replaced), "tree_size" or "masked_dense".
        dtype: Of its rows or weights.
        variant: "eager", "fused" or "compiled", for dense blocks.
        contestant: What is timed; None for what is skipped.
        against: Dtype of the dense blocks that it is compared with.
        skipped: Why it is not measured.
    """

    backend: str
    dtype: str
    variant: str | None
    contestant: Contestant | None
    against: str = "float32"
    skipped: str | None = None

    @property
    def key(self) -> str:
        """A name that no other entry has."""
        return " ".join(part for part in (self.backend, self.dtype, self.variant) if part)


def times(entries: Sequence[Entry], settings: LayerBench, bar: tqdm[object], place: str) -> dict[str, Timing]:
    """Time what is not skipped, and say who is on: in the bar, or in a line each where none is shown.

    Args:
        entries: The contestants.
        settings: How long.
        bar: Of the points that are measured.
        place: Which of them this is.
    """

    def begin(name: str) -> None:
        if bar.disable:
            sys.stderr.write(f"{place}: {name}\n")
        else:
            bar.set_postfix_str(f"{place}: {name}")

    contestants = {entry.key: entry.contestant for entry in entries if entry.contestant is not None}
    return measure(
        contestants, seconds=settings.seconds, repeats=settings.repeats, limit=settings.limit, begin=begin
    )


@dataclass
class Dense:
    """The dense blocks of one workload, in each dtype that is measured.

    Attributes:
        modules: By (size, dtype).
        skipped: By (size, dtype), why a block is not measured.
        problems: What could not be measured, and why.
    """

    modules: dict[tuple[str, str], nn.Module]
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, workload: Workload, dtypes: tuple[str, ...]) -> Dense:
        """Make them; what torch cannot make is noted."""
        spec = workload.layer.spec
        wide = dense.DenseFFN(spec.d_in, workload.tree_size, spec.activation).eval()
        found = cls({("block", "float32"): workload.block, ("tree_size", "float32"): wide})
        for size, module in (("block", workload.block), ("tree_size", wide)):
            if "bfloat16" in dtypes and (reason := dense.emulated()) is not None:
                found.skipped[size, "bfloat16"] = reason
            elif "bfloat16" in dtypes:
                found.modules[size, "bfloat16"] = copy.deepcopy(module).bfloat16()
            if "int8" in dtypes:
                try:
                    found.modules[size, "int8"] = dense.int8(module)
                except Exception as error:  # torch says in many ways that it has no kernel
                    found.problems.append(f"no int8 dense block: {first_line(error)}")
        return found

    def entries(self, batches: list[Tensor], compile_: bool) -> list[Entry]:
        """Each block as it is, and those of float32 compiled too, for these inputs' shape."""
        half = [x.bfloat16() for x in batches] if ("block", "bfloat16") in self.modules else []
        entries = [
            Entry(size, dtype, "eager", Contestant(module, half if dtype == "bfloat16" else batches))
            for (size, dtype), module in self.modules.items()
        ]
        entries += [
            Entry(size, dtype, "eager", None, skipped=reason)
            for (size, dtype), reason in self.skipped.items()
        ]
        torch.compiler.reset()
        for size in DENSE if compile_ else ():
            call = try_compiled(self.modules[size, "float32"], batches[0], size, self.problems)
            if call is not None:
                entries.append(Entry(size, "float32", "compiled", Contestant(call, batches)))
        return entries


def try_compiled(module: nn.Module, x: Tensor, name: str, problems: list[str]) -> dense.Call | None:
    """The module compiled for inputs like `x`; None, with a note among the problems, where that fails."""
    try:
        return dense.compiled(module, x)
    except Exception as error:  # whatever the compiler raises; eager mode is left to compare with
        where = f"{name}, {len(x)} tokens, {torch.get_num_threads()} threads"
        problems.append(f"torch.compile failed ({where}): {first_line(error)}")
        return None


def place(workload: Workload, threads: int, tokens: int) -> str:
    """Where in the run a workload is measured, in words."""
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{workload.name}, {workload.inputs} inputs, {count}, {tokens:,} tokens"


def layers(workload: Workload, settings: LayerBench) -> dict[tuple[str, str], FFFLayer]:
    """The layer, deployed on each backend with each row type."""
    return {
        (backend, dtype): deploy(copy.deepcopy(workload.layer), backend=backend, dtype=dtype)
        for backend, dtype in settings.variants
    }


def first_line(error: Exception) -> str:
    """An error's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
