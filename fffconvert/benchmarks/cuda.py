"""A layer on a GPU, against dense blocks through cuBLAS: outputs checked, times, bytes per second."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.benchmarks import check
from fffconvert.benchmarks.card import Card, fused
from fffconvert.benchmarks.contestants import Entry, first_line, times, try_compiled
from fffconvert.benchmarks.dense import Call, DenseFFN
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.benchmarks.summary import rows
from fffconvert.benchmarks.traffic import parameter_bytes, visited_bytes
from fffconvert.benchmarks.workload import Workload
from fffconvert.deployment import deploy
from fffconvert.runtime import Scales
from fffconvert.runtime.rows import store_rows
from fffconvert.tree import FFFLayer

Module = TypeVar("Module", bound=nn.Module)
INPUTS = {"int8": "bfloat16"}
"""Type of the inputs, and of the dense blocks to compare with, where it is not that of the rows."""


def cuda_rows(
    workload: Workload, settings: LayerBench, problems: list[str], card: Card, card_gb_s: float
) -> Iterator[dict[str, Any]]:
    """Measure one workload at each number of tokens.

    Args:
        workload: In float32, on the CPU.
        settings: What to measure.
        problems: Takes notes of what could not be measured.
        card: Where.
        card_gb_s: What the card's memory moves in a second, in 10^9 bytes.

    Raises:
        WrongOutputError: A backend's outputs are not those of the layer.
    """
    run = _Run(workload, settings, problems, card)
    bar = tqdm(settings.sizes, desc=f"{workload.name}, {workload.inputs} inputs", disable=None)
    for tokens in bar:
        batches = workload.batches(tokens, settings.seed)
        with torch.inference_mode():
            inputs = {
                dtype: [x.to(card.device, getattr(torch, dtype)) for x in batches] for dtype in run.computing
            }
            found, moved = run.check(inputs)
            entries = run.entries(inputs)
            found_times = times(entries, settings, bar, f"{tokens:,} tokens")
        common = {"mode": "inference", "threads": None, "tokens": tokens, "page_fault_us": None}
        measured = rows(workload, entries, found_times, found, **common)
        for entry, row in zip(entries, measured, strict=True):
            size = moved[entry.backend, entry.dtype]
            gb_s = size / row["median_us"] / 1e3
            yield row | {
                "page_faults": None,
                "bytes": size,
                "gb_s": gb_s,
                "share_of_bandwidth": gb_s / card_gb_s,
            }


class _Run:
    """The contestants of one workload, on the device."""

    def __init__(self, workload: Workload, settings: LayerBench, problems: list[str], card: Card) -> None:
        self.settings, self.problems, self.card = settings, problems, card
        self.original = workload.layer
        self.activation = workload.layer.spec.activation
        self.computing = tuple(dict.fromkeys(INPUTS.get(dtype, dtype) for dtype in settings.dtypes))
        self.sources = {dtype: _to(workload.layer, "cpu", dtype) for dtype in self.computing}
        self.layers = {
            (backend, dtype): _deployed(self.sources[INPUTS.get(dtype, dtype)], card.device, backend, dtype)
            for backend, dtype in settings.variants
        }
        wide = DenseFFN(workload.layer.spec.d_in, workload.tree_size, self.activation).eval()
        self.blocks = {
            (size, dtype): _to(module, card.device, dtype)
            for dtype in self.computing
            for size, module in (("block", workload.block), ("tree_size", wide))
        }

    def entries(self, inputs: Mapping[str, list[Tensor]]) -> list[Entry]:
        """All contestants for inputs of one size, by dtype."""
        entries = []
        for (backend, dtype), layer in self.layers.items():
            against = INPUTS.get(dtype, dtype)
            contestant = self.card.contestant(layer, inputs[against])
            entries.append(Entry(backend, dtype, None, contestant, against))
        torch.compiler.reset()
        for (size, dtype), block in self.blocks.items():
            for variant, call in self._forms(size, block, inputs[dtype][0]).items():
                contestant = self.card.contestant(call, inputs[dtype])
                entries.append(Entry(size, dtype, variant, contestant, dtype))
        return entries

    def _forms(self, size: str, block: nn.Module, x: Tensor) -> dict[str, Call]:
        """The ways to run a dense block that work for inputs like `x`."""
        forms: dict[str, Call] = {"eager": block}
        if isinstance(block, DenseFFN) and self.activation.startswith("gelu"):
            call = fused(block)
            try:
                call(x)
                forms["fused"] = call
            except Exception as error:  # an operator of torch's own, which may have no form for this card
                self.problems.append(f"no fused linear-GELU ({size}, {x.dtype}): {first_line(error)}")
        else:
            self.problems.append(f"no fused linear-GELU of {size}: it is not a plain block with GELU")
        if self.settings.compile:
            compiled = try_compiled(block, x, f"{size} in {x.dtype}", self.problems)
            if compiled is not None:
                forms["compiled"] = compiled
        return forms

    def check(
        self, inputs: Mapping[str, list[Tensor]]
    ) -> tuple[dict[str, dict[str, float | None]], dict[tuple[str, str], float]]:
        """What the check of each layer finds, by key of entry; bytes of a call, by backend and dtype.

        Raises:
            WrongOutputError: Outputs are not those of the layer.
        """
        found: dict[str, dict[str, float | None]] = {}
        moved: dict[tuple[str, str], float] = {}
        for dtype, batches in inputs.items():
            own = [run for run in self.layers if INPUTS.get(run[1], run[1]) == dtype]
            some = batches[: math.ceil(check.CHECKED_TOKENS / len(batches[0]))]
            ends = 2 * some[0].numel() * some[0].element_size()
            rounded = copy.deepcopy(self.sources[dtype]).float()
            for row_dtype in dict.fromkeys(row for _, row in own):
                truth = check.truth(rounded, row_dtype, torch.cat(some).cpu(), self.original)
                calls = truth.leaf.view(len(some), -1, truth.leaf.shape[1])
                size = ends + self._layer_bytes(dtype, row_dtype, calls)
                for backend in (backend for backend, row in own if row == row_dtype):
                    who = f"backend {backend} with {row_dtype} rows ({len(some[0])} tokens)"
                    y = torch.cat([self.layers[backend, row_dtype](part) for part in some]).cpu()
                    found[f"{backend} {row_dtype}"] = check.findings(y, truth, who)
                    moved[backend, row_dtype] = size
            for size_name in ("block", "tree_size"):
                moved[size_name, dtype] = ends + parameter_bytes(self.blocks[size_name, dtype])
        return found, moved

    def _layer_bytes(self, dtype: str, row_dtype: str, leaf: Tensor) -> float:
        """Bytes of the weights that a call reads, mean of several: [calls, tokens, T], the leaves reached."""
        layer, scales = self.sources[dtype], Scales()
        weights = layer.weights
        if row_dtype != dtype:
            weights, scales = store_rows(weights, getattr(torch, row_dtype))
        always = (layer.fff_bias, layer.fff_trunk_in, layer.fff_trunk_out)
        fixed = sum(tensor.numel() * tensor.element_size() for tensor in always if tensor is not None)
        return fixed + fmean(visited_bytes(weights, scales, call) for call in leaf)


def _to(module: Module, device: str, dtype: str) -> Module:
    """A copy on a device, in a dtype."""
    return copy.deepcopy(module).to(device, getattr(torch, dtype)).eval()


def _deployed(source: FFFLayer, device: str, backend: str, dtype: str) -> FFFLayer:
    """A copy of the layer on a device, deployed with rows of a type."""
    stored = str(source.fff_in_weight.dtype).removeprefix("torch.")
    # "auto" keeps float16 rows, which cannot be asked for by name.
    return deploy(_to(source, device, stored), backend=backend, dtype="auto" if dtype == "float16" else dtype)
