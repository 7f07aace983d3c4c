"""Build, verify and time the CUDA kernels on the card at hand: `python recipes/experiments/gpu_check.py`.

Takes less than five minutes and writes one JSON document. Exit status 0 if all outputs are right, 1 if not,
2 if there is no card.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import fffconvert as fff
from fffconvert.benchmarks.card import Card
from fffconvert.benchmarks.timing import measure
from fffconvert.runtime import Scales, Weights, cuda, reference
from fffconvert.runtime.backend import Passed
from fffconvert.runtime.rows import store_rows
from fffconvert.store import write_json

D_MODEL = 768
FORESTS = ((1, 11), (1, 6))
"""The paper's 1x11, and a smaller tree."""
VERIFIED: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
    (768, 1, 11, {}),
    (768, 1, 11, {"branch_outputs": True}),
    (768, 4, 5, {"branch_outputs": True, "leaf_width": 24, "leaf_gated": True}),
    (257, 4, 5, {}),
    (257, 4, 5, {"leaf_width": 24}),
    (257, 4, 5, {"branch_outputs": True, "leaf_width": 24, "leaf_gated": True}),
)
"""Width, trees, depth and form of the layers that are compared with the reference."""
VERIFIED_TOKENS = (3, 1500)
TOKENS = (1, 8, 64, 256, 1024, 4096, 16_384)
DTYPES = ("float32", "float16", "bfloat16")
CALLS, SECONDS = 42, 0.01
"""How often each call is timed at least, and how long."""
DEVICE = "cuda"
NOISE = 1e-4
"""Tokens with a logit nearer to 0 than this are not compared: rounding may send them another way."""

Call = Callable[[Tensor], Any]


def main(arguments: list[str] | None = None) -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="verify all, time few sizes")
    options = parser.parse_args(arguments)
    found = cuda.status()
    if not found.available:
        progress(f"error: the cupy backend cannot run here: {found.reason}")
        return 2
    started = time.perf_counter()
    tokens = TOKENS[::3] if options.quick else TOKENS
    document = {
        "build_seconds": build_all(),
        "verified": verify_all(),
        "kernels": [row for forest in FORESTS for row in time_kernels(*forest, tokens)],
        # Against dense blocks; compiling those too would take many minutes.
        "layers": fff.bench_layer(
            None,
            forests=FORESTS,
            sizes=tokens,
            device="cuda",
            compile=False,
            seconds=SECONDS,
            repeats=CALLS,
        ),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(options.output, document)
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
            weights, scales, bias = layer(fff.FFFSpec(64, 64, 2), row_dtype)
            started = time.perf_counter()
            cuda.inference(draw(1, 64, x_dtype), bias, weights, scales, "gelu")
            torch.cuda.synchronize()
            seconds[f"{x_dtype}, {row_dtype} rows"] = round(time.perf_counter() - started, 2)
    return seconds


def verify_all() -> list[dict[str, Any]]:
    """Compare with the reference: every pair of types, form of layer, regime, and gradients."""
    cases = []
    plan = list(itertools.product(VERIFIED, DTYPES, (False, True), VERIFIED_TOKENS))
    for (width, trees, depth, form), x_dtype, int8, tokens in tqdm(plan, desc="verifying", disable=None):
        row_dtype = "int8" if int8 else x_dtype
        weights, scales, bias = layer(fff.FFFSpec(width, width, depth, trees, **form), row_dtype)
        case = {"width": width, "forest": f"{trees}x{depth}", "x": x_dtype, "rows": row_dtype, **form}
        for few in (True, False):
            with regime(few):
                result = verify(draw(tokens, width, x_dtype), bias, weights, scales)
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


def time_kernels(trees: int, depth: int, tokens: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The kernels for few tokens and those for many, called, and in a CUDA graph: a row a type and size."""
    card = Card(DEVICE)
    for dtype in DTYPES:
        weights, scales, bias = layer(fff.FFFSpec(D_MODEL, D_MODEL, depth, trees), dtype)

        def run(few: bool, x: Tensor, layer: tuple[Any, ...] = (bias, weights, scales, "gelu")) -> Tensor:
            with regime(few):
                return cuda.inference(x, *layer)

        for count in tqdm(tokens, desc=f"{trees}x{depth} {dtype}", disable=None):
            x = draw(count, D_MODEL, dtype)
            calls: dict[str, Call] = {"few": partial(run, True), "many": partial(run, False)}
            with torch.inference_mode():
                calls |= {f"{name}_graph": graphed(call, x) for name, call in calls.items()}
                contestants = {name: card.contestant(call, [x]) for name, call in calls.items()}
                times = measure(contestants, seconds=SECONDS, repeats=CALLS)
            medians = {f"{name}_us": round(timing.median_us, 2) for name, timing in times.items()}
            yield {"forest": f"{trees}x{depth}", "dtype": dtype, "tokens": count, **medians}


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


def layer(spec: fff.FFFSpec, row_dtype: str) -> tuple[Weights, Scales, Tensor]:
    """The trees of a random layer on the card, and its bias."""
    made = fff.FFFLayer(spec, device=DEVICE, dtype=torch.float32)
    generator = torch.Generator(DEVICE).manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            size = parameter.shape[-1] ** -0.5 if "weight" in name else 0.5
            parameter.normal_(0, size, generator=generator)
    weights = Weights._make(None if w is None else w.detach() for w in made.weights)
    bias = made.fff_bias.detach()
    if row_dtype == "int8":
        return *store_rows(weights, torch.int8), bias
    dtype = getattr(torch, row_dtype)  # biases too, as in training
    return Weights._make(None if w is None else w.to(dtype) for w in weights), Scales(), bias


def draw(tokens: int, width: int, dtype: str) -> Tensor:
    """Random inputs on the card."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    x = torch.randn(tokens, width, generator=generator, device=DEVICE, dtype=torch.float32)
    return x.to(getattr(torch, dtype))


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


if __name__ == "__main__":
    sys.exit(main())
