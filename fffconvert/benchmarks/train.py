"""Forward plus backward of a layer, against the masked dense form that it is trained in, and dense blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.benchmarks import check, dense
from fffconvert.benchmarks.contestants import Entry, place, times, try_compiled
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.benchmarks.summary import rows
from fffconvert.benchmarks.timing import Contestant
from fffconvert.benchmarks.workload import Workload
from fffconvert.runtime.backends import choose
from fffconvert.tree import FFFLayer

CHECKED_TOKENS = 2048
"""The masked form in float64 needs tokens x nodes x 8 bytes several times over."""


def train_rows(workload: Workload, settings: LayerBench, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Measure a training step of a layer: outputs, gradients of the input and of all weights.

    Args:
        workload: A layer of the paper's form, and its block.
        settings: How to measure.
        problems: Takes notes of what could not be measured.

    Raises:
        WrongOutputError: Outputs or gradients differ from those of the masked dense form.
    """
    layer = copy.deepcopy(workload.layer).train()
    masked = dense.MaskedDense(layer.fff_in_weight, layer.fff_in_bias, layer.fff_out_weight, layer.fff_bias)
    wide = dense.DenseFFN(layer.spec.d_in, workload.tree_size)
    modules = {"masked_dense": masked, "block": workload.block, "tree_size": wide}
    points = [(threads, tokens) for threads in settings.threads for tokens in settings.sizes]
    bar = tqdm(points, desc=f"{workload.name}, training", disable=None)
    for threads, tokens in bar:
        torch.set_num_threads(threads)
        batches = workload.batches(tokens, settings.seed)
        inputs = [x.requires_grad_() for x in batches]
        gradient = torch.randn(
            tokens, layer.spec.d_out, generator=torch.Generator().manual_seed(1), dtype=torch.float32
        )
        own = choose("backward", inputs[0], layer.weights).NAME
        error, left_out = gradient_error(layer, masked, batches[0].detach(), gradient)
        torch.compiler.reset()
        entries = [Entry(own, "float32", None, _step(layer, layer, inputs, gradient))]
        for name, module in modules.items():
            entries.append(Entry(name, "float32", "eager", _step(module, module, inputs, gradient)))
            call = try_compiled(module, inputs[0], name, problems) if settings.compile else None
            if call is not None:
                entries.append(Entry(name, "float32", "compiled", _step(module, call, inputs, gradient)))
        found = times(entries, settings, bar, place(workload, threads, tokens))
        errors = {entries[0].key: {"max_error": error, "left_out": left_out, "path_agreement": None}}
        common = {"mode": "train", "threads": threads, "tokens": tokens, "page_fault_us": None}
        yield from rows(workload, entries, found, errors, **common)


def _step(module: nn.Module, call: dense.Call, inputs: list[Tensor], gradient: Tensor) -> Contestant:
    def step(x: Tensor) -> None:
        torch.autograd.backward(call(x), gradient)

    def forget(x: Tensor) -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None

    return Contestant(step, inputs, forget)


def gradient_error(
    layer: FFFLayer, masked: dense.MaskedDense, x: Tensor, gradient: Tensor
) -> tuple[float, float]:
    """Compare a layer's outputs and gradients with those of the masked form in float64.

    Args:
        layer: The paper's layer, float32.
        masked: The same weights.
        x: [tokens, d_in]
        gradient: [tokens, d_out], of the outputs.

    Returns:
        Largest error over the largest true value, of the worst of outputs and gradients; and the share of
        tokens that are left out, a logit of theirs being within rounding of 0.

    Raises:
        WrongOutputError: The error is more than rounding explains.
    """
    x, gradient = x[:CHECKED_TOKENS], gradient[:CHECKED_TOKENS]
    kept, _ = check.clear_of_noise(layer, x)
    gradient = gradient * kept[:, None]
    precise = copy.deepcopy(masked).double()
    truth = _gradients(precise, x.double(), gradient.double(), kept)
    plain = _gradients(masked, x, gradient, kept)
    found = _gradients(layer, x, gradient, kept)
    worst = 0.0
    for name, expected in truth.items():
        size = float(expected.abs().max()) or 1.0
        explained = 2 * float((plain[name].double() - expected).abs().max()) / size
        error = float((found[name].double().view_as(expected) - expected).abs().max()) / size
        if not error <= explained + check.EPS * math.sqrt(x.shape[1]):
            raise check.WrongOutputError(
                f"training gives wrong values: {name} is off by {error:.1e} of the largest, "
                f"plain torch by {explained / 2:.1e}"
            )
        worst = max(worst, error)
    return worst, 1 - float(kept.double().mean())


def _gradients(module: nn.Module, x: Tensor, gradient: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Outputs of the kept tokens, and the gradients of the input and the weights."""
    x = x.clone().requires_grad_()
    y = module(x)
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(y, (x, *parameters), gradient)
    named = {f"gradient of {n.removeprefix('fff_')}": g for n, g in zip(("x", *names), grads, strict=True)}
    return {"output": y[kept].detach(), **named}
