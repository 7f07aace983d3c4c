"""Measure the machine at hand: rates of linear maps, attention, trees and elementwise operations, in seconds.

All with random numbers, in float32, with as many threads as torch uses, and as a model does it: results are
allocated anew, and weights are not in the cache, since those of the other layers were used in between.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import BertConfig, BertModel

from fffconvert.estimation.anatomy import Anatomy
from fffconvert.estimation.faults import fresh_shares
from fffconvert.estimation.machines import Hardware, Rates
from fffconvert.estimation.recording import record
from fffconvert.estimation.workload import Workload
from fffconvert.planning import FFFSpec
from fffconvert.processor import cpu
from fffconvert.tree import FFFLayer

Curve = list[tuple[float, float]]
MAPS = ((384, 384), (384, 1536), (768, 3072), (2048, 8192))
"""Widths of the linear maps that are measured."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LENGTHS = (8, 32, 128, 512, 1024)
"""Lengths of the attention that is measured, with as many sequences as make 2,048 tokens."""
WIDTHS, DEPTHS = (384, 768), (7, 11, 14)
"""Of the trees that are measured."""
TREE_ROWS = (1, 4, 16, 32, 128, 512, 2048, 8192)
SIZES = (1 << 12, 1 << 15, 1 << 18, 1 << 21, 1 << 23)
"""Bytes of a tensor in elementwise operations."""
FRESH = 1 << 26
COLD = 512 << 20
"""Bytes of weights that are used in turn: a model's do not stay in the last cache between two passes."""
MOST_MACS = 6e9
"""A point that computes more is left out."""
LEAST_SECONDS = 0.02
"""Each point is repeated for so long."""
COLUMNS = 768
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
ELEMENTWISE: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "add": (3, lambda x: x + x.view_as(x)),
    "mul": (2, lambda x: x * 1.5),
    "native_layer_norm": (2, lambda x: F.layer_norm(x, x.shape[-1:])),
    "gelu": (2, F.gelu),
    "silu": (2, F.silu),
    "relu": (2, F.relu),
    "tanh": (2, torch.tanh),
    "pow": (2, lambda x: x**3),
    "softmax": (2, lambda x: x.softmax(-1)),
    "clone": (2, lambda x: x.clone()),
    "cat": (4, lambda x: torch.cat([x, x])),
}
"""Operations by name, and how many tensors of the size of `x` they read and write."""


@cache
def this_machine() -> Hardware:
    """The machine at hand, measured once per process."""
    with torch.inference_mode(), tqdm(desc="measure", unit="point", disable=None) as bar:
        rates = Rates(
            matmul=[(float(d_in * d_out), _maps(d_in, d_out, bar)) for d_in, d_out in MAPS],
            attention=_attention(bar),
            tree=[(float(w), [_trees(w, depth, bar) for depth in DEPTHS]) for w in WIDTHS],
            elementwise={name: _elementwise(*how, bar) for name, how in ELEMENTWISE.items()},
            fresh=_fresh(),
            fresh_share=fresh_shares(),
        )
    processor = cpu()
    return Hardware(
        name="this",
        title=f"{processor.model}, {processor.threads} threads",
        kind="cpu",
        flops={"float32": 2 * max(rate for _, curve in rates.matmul for _, rate in curve)},
        vector_flops=2
        * max(rate for _, by_nodes in rates.tree for _, curve in by_nodes for _, rate in curve),
        bandwidth=_bandwidth(),
        cache_bytes=_last_cache(),
        cache_bandwidth=max(rate for _, rate in rates.elementwise["clone"]),
        memory_bytes=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        call_us=_call_us(),
        source="measured here",
        rates=rates,
    )


def seconds(run: Callable[[], object], least: float = LEAST_SECONDS, most_runs: int = 1000) -> float:
    """Median time of a call, after one that does not count."""
    return statistics.median(timings(run, least, most_runs))


def timings(run: Callable[[], object], least: float, most_runs: int) -> list[float]:
    """Times of single calls, at least three and for at least so long, after one that does not count."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < least and len(times) < most_runs):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


def _maps(d_in: int, d_out: int, bar: Any) -> Curve:
    """Multiply-adds per second of a linear map, by rows."""
    weights = torch.randn(max(1, COLD // (4 * d_in * d_out)), d_out, d_in, dtype=torch.float32)
    bias = torch.randn(d_out, dtype=torch.float32)
    curve = []
    for rows in ROWS:
        if rows * d_in * d_out <= MOST_MACS:
            x = torch.randn(rows, d_in, dtype=torch.float32)
            runs = [partial(F.linear, x, weight, bias) for weight in weights]
            curve.append((float(rows), rows * d_in * d_out / seconds(_in_turn(runs))))
            bar.update()
    return curve


def _attention(bar: Any) -> Curve:
    """Multiply-adds per second of attention, by keys."""
    curve = []
    for length in LENGTHS:
        q, k, v = torch.randn(3, 2048 // length, 12, length, 64, dtype=torch.float32)
        taken = seconds(partial(F.scaled_dot_product_attention, q, k, v))
        curve.append((float(length), 2 * q.numel() * length / taken))
        bar.update()
    return curve


def _trees(width: int, depth: int, bar: Any) -> tuple[float, Curve]:
    """Nodes of a tree, and multiply-adds per second by rows."""
    spec = FFFSpec(width, width, depth)
    layers = [FFFLayer(spec).eval() for _ in range(max(1, COLD // (4 * spec.parameters)))]
    curve = []
    for rows in TREE_ROWS:
        x = torch.randn(rows, width, dtype=torch.float32)
        runs = [partial(layer, x) for layer in layers]
        curve.append((float(rows), rows * spec.macs_per_token / seconds(_in_turn(runs))))
        bar.update()
    return float(spec.nodes), curve


def _elementwise(tensors: int, function: Callable[[Tensor], Tensor], bar: Any) -> Curve:
    """Bytes per second of an operation that reads and writes so many tensors, by bytes."""
    curve = []
    for size in SIZES:
        x = torch.randn(-(-size // (4 * COLUMNS)), COLUMNS, dtype=torch.float32)
        moved = 4.0 * tensors * x.numel()
        curve.append((moved, moved / seconds(partial(function, x))))
        bar.update()
    return curve


def _in_turn(runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Calls one after the other, from the first again after the last."""
    endless = itertools.cycle(runs)
    return lambda: next(endless)()


def _bandwidth() -> float:
    """Bytes per second of the memory itself: a copy much larger than a processor's share of the cache."""
    source, target = torch.ones(2, 4 * FRESH, dtype=torch.uint8)
    return 2.0 * FRESH * 4 / seconds(lambda: target.copy_(source), least=0.3)


def _fresh() -> float:
    """Bytes per second of memory that was never touched, beside writing it."""
    used = torch.empty(FRESH, dtype=torch.uint8)
    again = seconds(lambda: used.fill_(1), least=0.1)
    first = seconds(lambda: torch.empty(FRESH, dtype=torch.uint8).fill_(1), least=0.3)
    return FRESH / max(first - again, 1e-6)


def _call_us() -> float:
    """Time of one operation of a model so small that computing takes no time."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_hidden_layers": 8}
    model = BertModel(BertConfig(vocab_size=32, **sizes)).eval()
    inputs = {
        "input_ids": torch.ones(1, 2, dtype=torch.long),
        "attention_mask": torch.ones(1, 2, dtype=torch.float32),
    }
    with torch.inference_mode():
        taken = seconds(lambda: model(**inputs), least=0.2)
    return 1e6 * taken / calls(record(model), Workload(1, 2))


def calls(anatomy: Anatomy, work: Workload) -> int:
    """Operations of one forward pass."""
    return sum(operation.calls for operation in anatomy.operations if operation.size(work))


def _last_cache() -> float:
    """Size of the last cache in bytes; 32 MB where the system does not tell."""
    found = [file.read_text().strip() for file in sorted(CACHES.glob("index*/size"))]
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [float(size[:-1]) * units[size[-1]] for size in found if size[-1:] in units]
    return max(sizes, default=32e6)
