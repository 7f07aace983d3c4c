"""Build, verify and time the CUDA kernels on the card at hand: `python -m fffconvert.benchmarks.gpu_check`.

Takes less than five minutes and writes one JSON document. Exit status 0 if all outputs are right, 1 if not,
2 if there is no card.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fffconvert.benchmarks.card import PUBLISHED, Card, describe, fused
from fffconvert.benchmarks.dense import DenseFFN
from fffconvert.benchmarks.timing import Timing, measure
from fffconvert.runtime import Scales, Weights, cuda, reference
from fffconvert.runtime.backend import Passed
from fffconvert.runtime.rows import store_rows

D_MODEL = 768
DEPTHS = (11, 6)
"""The paper's 1x11, and a smaller tree."""
BLOCK = 3072
VERIFIED: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
    (768, 1, 11, {}),
    (768, 1, 11, {"branches": 2}),
    (768, 4, 5, {"branches": 2, "leaf_width": 24, "gated": True}),
    (257, 4, 5, {}),
    (257, 4, 5, {"leaf_width": 24}),
    (257, 4, 5, {"branches": 2, "leaf_width": 24, "gated": True}),
)
"""Width, trees, depth and form of the layers that are compared with the reference."""
VERIFIED_TOKENS = (3, 1500)
TOKENS = (1, 8, 64, 256, 1024, 4096, 16_384)
DTYPES = ("float32", "float16", "bfloat16")
COMPILED_TOKENS = (1, 16_384)
"""Where `torch.compile` is timed too, with the first depth: compiling takes seconds."""
CALLS, SECONDS = 42, 0.01
"""How often each call is timed at least, and how long."""
BUFFERS = 4
"""Calls take turns through so many distinct inputs."""
DEVICE = "cuda"
NOISE = 1e-4
"""Tokens with a logit nearer to 0 than this are not compared: rounding may send them another way."""

Call = Callable[[Tensor], Any]


def main(arguments: list[str] | None = None) -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fffconvert.benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="verify all, time few sizes")
    options = parser.parse_args(arguments)
    found = cuda.status()
    if not found.available:
        progress(f"error: the cupy backend cannot run here: {found.reason}")
        return 2
    started = time.perf_counter()
    document: dict[str, Any] = {"machine": describe()}
    document["build_seconds"] = build_all()
    document["verified"] = verify_all()
    tokens = TOKENS[::3] if options.quick else TOKENS
    document["bandwidth_gb_s"] = round(Card(DEVICE).copy_gb_s(), 1)
    document["rows"] = [
        row for depth in DEPTHS for row in time_all(depth, tokens, document["bandwidth_gb_s"])
    ]
    document["published"] = PUBLISHED
    document["seconds"] = round(time.perf_counter() - started, 1)
    write(document, options.output)
    wrong = [case for case in document["verified"] if not case["right"]]
    for case in wrong:
        progress(f"wrong: {case}")
    cases = len(document["verified"])
    progress(f"{cases - len(wrong)} of {cases} cases right; wrote {options.output}")
    return 1 if wrong else 0


def progress(line: str) -> None:
    """A line for people."""
    sys.stderr.write(f"{line}\n")


def build_all() -> dict[str, float]:
    """Seconds to compile the kernels for each pair of types, or to load them from CuPy's cache."""
    seconds = {}
    for x_dtype in tqdm(DTYPES, desc="building", disable=None):
        for row_dtype in (x_dtype, "int8"):
            draw, weights, scales, bias = layer(64, 1, 2, x_dtype, row_dtype)
            started = time.perf_counter()
            cuda.inference(draw(1)[0], bias, weights, scales, "gelu")
            torch.cuda.synchronize()
            seconds[f"{x_dtype}, {row_dtype} rows"] = round(time.perf_counter() - started, 2)
    return seconds


def verify_all() -> list[dict[str, Any]]:
    """Compare with the reference: every pair of types, form of layer, regime, and gradients."""
    cases = []
    plan = list(itertools.product(VERIFIED, DTYPES, (False, True), VERIFIED_TOKENS))
    for (width, trees, depth, form), x_dtype, int8, tokens in tqdm(plan, desc="verifying", disable=None):
        row_dtype = "int8" if int8 else x_dtype
        draw, weights, scales, bias = layer(width, trees, depth, x_dtype, row_dtype, **form)
        case = {"width": width, "forest": f"{trees}x{depth}", "x": x_dtype, "rows": row_dtype, **form}
        for few in (True, False):
            with regime(few):
                result = verify(draw(tokens)[0], bias, weights, scales)
            cases.append({**case, "tokens": tokens, "few_tokens_kernel": few, **result})
    return cases


def verify(x: Tensor, bias: Tensor, weights: Weights, scales: Scales) -> dict[str, Any]:
    """Errors of the outputs, and of the gradients where rows have some, each beside what is allowed."""
    widened = _double(weights, scales)
    _, logits, leaf = reference.forward(x.double(), widened, "gelu")
    kept = logits.abs().flatten(1).amin(1) > NOISE
    x, logits, leaf = x[kept], logits[kept].float(), leaf[kept]
    truth = reference.inference(x.double(), bias.double(), widened, Scales(), "gelu")
    y = cuda.inference(x, bias, weights, scales, "gelu")
    plain = reference.inference(x, bias, weights, scales, "gelu")
    error, allowed = _error(y, truth), 2 * _error(plain, truth) + 1e-5
    right = error <= allowed and len(x) > 0
    result: dict[str, Any] = {"left_out": 1 - float(kept.float().mean()), "error": error, "allowed": allowed}
    if weights.in_weight.is_floating_point():
        own = cuda.forward(x, weights, "gelu")
        right &= torch.equal(own[2], leaf)
        passed = Passed(x, weights, logits, leaf, "gelu")
        given = (torch.ones_like(own[0]), torch.zeros_like(logits), passed)
        grads, expected = cuda.backward(*given), reference.backward(*given)
        again = cuda.backward(*given)
        right &= all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
        worst = max(_error(a, b) for a, b in zip(grads, expected, strict=True))
        limit = 1e-4 if x.dtype == torch.float32 else 2e-2
        right &= worst <= limit
        result |= {"gradient_error": worst, "gradient_allowed": limit}
    return result | {"right": bool(right)}


def time_all(depth: int, tokens: tuple[int, ...], card_gb_s: float) -> Iterator[dict[str, Any]]:
    """One row for each type and number of tokens: the layer, and everything that it is compared with."""
    nodes, card = 2 ** (depth + 1) - 1, Card(DEVICE)
    for dtype in DTYPES:
        draw, weights, _, bias = layer(D_MODEL, 1, depth, dtype, dtype)
        blocks = {
            name: DenseFFN(D_MODEL, width).to(DEVICE, getattr(torch, dtype)).eval()
            for name, width in (("block", BLOCK), ("tree_size", nodes))
        }
        for count in tqdm(tokens, desc=f"1x{depth} {dtype}", disable=None):
            inputs = draw(count)
            row: dict[str, Any] = {"forest": f"1x{depth}", "dtype": dtype, "tokens": count}
            with torch.inference_mode():
                calls = layer_calls(weights, bias, inputs[0])
                for name, block in blocks.items():
                    compiled = depth == DEPTHS[0] and count in COMPILED_TOKENS
                    calls |= dense_calls(name, block, inputs[0], compiled)
                contestants = {name: card.contestant(call, inputs) for name, call in calls.items()}
                for name, timing in measure(contestants, seconds=SECONDS, repeats=CALLS).items():
                    row |= _named(name, timing)
            yield row | ratios(row, depth, count, weights, card_gb_s)


def layer_calls(weights: Weights, bias: Tensor, x: Tensor) -> dict[str, Call]:
    """The layer: as chosen, in a CUDA graph, with int8 rows, in each regime, and by the reference."""
    narrow, scales = store_rows(weights, torch.int8)

    def run(x: Tensor) -> Tensor:
        return cuda.inference(x, bias, weights, Scales(), "gelu")

    def run_regime(few: bool, x: Tensor) -> Tensor:
        with regime(few):
            return run(x)

    return {
        "cupy": run,
        "cupy_graph": graphed(run, x),
        "cupy_int8": lambda x: cuda.inference(x, bias, narrow, scales, "gelu"),
        "cupy_few": partial(run_regime, True),
        "cupy_many": partial(run_regime, False),
        "reference": lambda x: reference.inference(x, bias, weights, Scales(), "gelu"),
    }


def dense_calls(name: str, block: DenseFFN, x: Tensor, compiled: bool) -> dict[str, Call]:
    """A dense block eagerly, with cuBLAS's fused linear and GELU, that in a CUDA graph, and compiled."""
    in_one = fused(block)
    calls: dict[str, Call] = {
        f"{name}_eager": block,
        f"{name}_fused": in_one,
        f"{name}_graph": graphed(in_one, x),
    }
    if compiled:
        torch.compiler.reset()
        calls[f"{name}_compiled"] = torch.compile(block, dynamic=False)
    return calls


def graphed(call: Call, x: Tensor) -> Call:
    """The call in a CUDA graph: what is left when the host costs nothing."""
    own, stream = x.clone(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            call(own)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        call(own)

    def replay(x: Tensor) -> None:
        own.copy_(x)
        graph.replay()

    return replay


def ratios(
    row: dict[str, Any], depth: int, tokens: int, weights: Weights, card_gb_s: float
) -> dict[str, Any]:
    """How many times faster than the best dense block of each size, and how much of the card's bandwidth."""
    result: dict[str, Any] = {}
    for name in ("block", "tree_size"):
        best = min(row[key] for key in row if key.startswith(name) and key.endswith("median_us"))
        result[f"speedup_vs_{name}"] = round(
            best / min(row["cupy_median_us"], row["cupy_graph_median_us"]), 2
        )
        result[f"speedup_vs_{name}_fused"] = round(
            row[f"{name}_graph_median_us"] / row["cupy_graph_median_us"], 2
        )
    size = weights.in_weight.element_size()
    row_bytes = min(tokens * (depth + 1), weights.in_weight.shape[1]) * 2 * D_MODEL * size
    least = row_bytes + 2 * tokens * D_MODEL * size
    reached = least / row["cupy_graph_median_us"] / 1e3
    return result | {
        "least_bytes": least,  # each visited row once, inputs and outputs
        "reached_gb_s": round(reached, 1),
        "share_of_bandwidth": round(reached / card_gb_s, 3),
    }


def layer(
    width: int,
    trees: int,
    depth: int,
    x_dtype: str,
    row_dtype: str,
    branches: int = 1,
    leaf_width: int = 0,
    gated: bool = False,
) -> tuple[Callable[[int], list[Tensor]], Weights, Scales, Tensor]:
    """A random layer on the card, and what draws inputs for it."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    nodes = 2 ** (depth + 1) - 1

    def normal(*shape: int, dtype: str = "float32") -> Tensor:
        scale = 0.5 if len(shape) < 3 else shape[-1] ** -0.5
        return scale * torch.randn(shape, generator=generator, device=DEVICE, dtype=getattr(torch, dtype))

    def draw(tokens: int) -> list[Tensor]:
        shape = (BUFFERS, tokens, width)
        x = torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float32)
        return list(x.to(getattr(torch, x_dtype)))

    leaves = (trees, nodes + 1, leaf_width)
    weights = Weights(
        normal(trees, nodes, width),
        normal(trees, nodes),
        normal(trees, branches * nodes, width),
        normal(trees, nodes + 1, width) if branches == 2 else None,
        normal(*leaves, width) if leaf_width else None,
        0.5 * normal(*leaves) if leaf_width else None,
        normal(*leaves, width) if gated else None,
        0.5 * normal(*leaves) if gated else None,
        normal(*leaves, width) if leaf_width else None,
    )
    if row_dtype == "int8":
        weights, scales = store_rows(weights, torch.int8)
    else:
        dtype = getattr(torch, row_dtype)
        weights, scales = Weights._make(None if w is None else w.to(dtype) for w in weights), Scales()
    return draw, weights, scales, normal(width)


def write(document: dict[str, Any], path: Path) -> None:
    """Write the JSON into place."""
    handle, name = tempfile.mkstemp(dir=path.resolve().parent, suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    Path(name).replace(path)


@contextmanager
def regime(few: bool) -> Iterator[None]:
    """Use the kernels for few or for many tokens, whatever their number."""
    usual, cuda.FEW_TOKENS = cuda.FEW_TOKENS, sys.maxsize if few else 0
    try:
        yield
    finally:
        cuda.FEW_TOKENS = usual


def _double(weights: Weights, scales: Scales) -> Weights:
    """The weights in float64, int8 rows multiplied by their scales."""
    named = {name: None if w is None else w.double() for name, w in weights._asdict().items()}
    for name, scale in scales._asdict().items():
        stored = named[name]
        if scale is not None and stored is not None:
            named[name] = stored * scale.double()[..., None]
    return Weights._make(named.values())


def _error(actual: Tensor, expected: Tensor) -> float:
    """Largest error over the largest expected number."""
    size = float(expected.abs().max()) or 1.0
    return float((actual.double() - expected.double()).abs().max()) / size


def _named(name: str, timing: Timing) -> dict[str, float]:
    return {f"{name}_{key}": round(getattr(timing, key), 2) for key in ("median_us", "p20_us", "p80_us")}


if __name__ == "__main__":
    sys.exit(main())
