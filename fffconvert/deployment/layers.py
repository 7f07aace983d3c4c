"""Choose what computes each layer of a converted model: backend, row type, or the dense block it replaced."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fffconvert import hub, surgery
from fffconvert.deployment.timing import TOKENS, size, times
from fffconvert.errors import FFFError
from fffconvert.fit.diagnostics import skipped_share
from fffconvert.location import locate
from fffconvert.location.inputs import example_inputs
from fffconvert.runtime import Inference, Weights, cmm
from fffconvert.runtime.backend import Backend
from fffconvert.runtime.backends import BACKENDS, named, on_device
from fffconvert.runtime.rows import ROW_DTYPES, store_rows
from fffconvert.tree import FFFLayer

FASTER = 0.05
"""Another row type must save about this share of the time: it costs memory, and times are noisy."""
SAMPLE, SIZES = 64, tuple(2.0**power for power in range(-8, 9))
"""Tokens and sizes with which the size of inputs is found at which a sparse layer skips what it should."""
TOLERANCE = 0.01
"""Largest relative error (root mean square) for which `dtype="auto"` takes smaller rows."""


@dataclass(frozen=True)
class LayerDeployment:
    """What computes one layer, and why.

    Attributes:
        name: Name of the layer's module.
        backend: The backend's name, or "dense" for the original block.
        dtype: Type of the stored rows.
        reason: Why this was chosen, or what stands against it.
        microseconds: Median time of one call for each of `TOKENS`, in microseconds.
        dense_microseconds: The same of the original block; None if it is not at hand.
        error: Relative error (root mean square) that the row type brings, on random inputs.
    """

    name: str
    backend: str
    dtype: str
    reason: str
    microseconds: tuple[float, ...]
    dense_microseconds: tuple[float, ...] | None
    error: float


def deploy_layers(
    model: nn.Module,
    backend: str = "auto",
    dtype: str = "auto",
    *,
    originals: Mapping[str, nn.Module] | None = None,
) -> list[LayerDeployment]:
    """Choose what computes each layer of a converted model, in place.

    Args:
        model: The model, or one layer.
        backend: "auto", or the one to take.
        dtype: "auto", or the row type to take.
        originals: Original blocks by name; by default those that `convert` keeps in this process.

    Raises:
        FFFError: The model has no FFF layer, or the backend cannot run here; nothing is changed.
    """
    layers = surgery.layers_of(model)
    if not layers:
        raise FFFError("the model holds no FFF layer; convert it first (fffconvert convert)")
    for placed in layers.values():
        _check(backend, dtype, placed.layer)
    chosen = []
    for block, (name, layer, *_) in layers.items():
        if originals is None:
            original = surgery.original(model, layer)
        else:
            original = next((originals[n] for n in surgery.names_of(block, model) if n in originals), None)
        inference, deployment = _choose(name, layer, backend, dtype, original)
        chosen.append((layer, inference, deployment))
    for layer, inference, _ in chosen:
        inference.deployed = True
        layer.inference = inference
    return [deployment for _, _, deployment in chosen]


def original_blocks(base: str, revision: str | None, trust_remote_code: bool) -> dict[str, nn.Module]:
    """The blocks of a base model, by name; none if it is not at hand."""
    try:
        model = hub.load(base, revision=revision, trust_remote_code=trust_remote_code).model
        sites = locate(model, example_inputs(model), min_expansion=0.0)
    except FFFError:
        return {}
    return {site.name: site.dense() for site in sites}


def _check(backend: str, dtype: str, layer: FFFLayer) -> None:
    found = named(backend)
    if backend != "auto" and found is None:
        raise FFFError(f"unknown backend {backend!r}; expected auto, {', '.join(b.NAME for b in BACKENDS)}")
    if dtype != "auto" and dtype not in ROW_DTYPES:
        raise FFFError(f"unknown row type {dtype!r}; expected auto, {', '.join(ROW_DTYPES)}")
    if found is None:
        return
    if not (status := found.status()).available:
        raise FFFError(f"backend {backend!r} cannot run here: {status.reason}")
    if reason := _why_not(found, dtype, layer):
        raise FFFError(f"backend {backend!r} cannot compute the layers: {reason}")


def _why_not(backend: Backend, dtype: str, layer: FFFLayer) -> str | None:
    """Why a backend does not compute a layer with rows of a type, "auto" for its own; None if it does."""
    some = Weights._make(None if w is None else w[:, :1].detach() for w in layer.weights)
    stored = some if dtype == "auto" else store_rows(some, ROW_DTYPES[dtype])[0]
    x = layer.fff_bias.new_empty(1, layer.spec.d_in)
    return backend.why_not("inference", x, stored, layer.fff_bias)


def _choose(
    name: str, layer: FFFLayer, backend: str, dtype: str, original: nn.Module | None
) -> tuple[Inference, LayerDeployment]:
    stored = str(layer.fff_in_weight.dtype).removeprefix("torch.")
    inputs = _inputs(layer)
    found = {}
    usual = _backends("auto", layer)[0]
    for run, row_type in itertools.product(_backends(backend, layer), _row_types(dtype, stored)):
        candidate = Inference(
            "auto" if run == usual else run, None if row_type == stored else ROW_DTYPES[row_type]
        )
        with _inferring(layer, candidate):
            found[run, row_type] = candidate, times(layer, inputs), _outputs(layer, inputs)
    if dtype == "auto":
        exact = next(iter(found.values()))[2]
    else:
        with _inferring(layer, Inference("reference")):
            exact = _outputs(layer, inputs)
    errors = {key: _relative_error(outputs, exact) for key, (_, _, outputs) in found.items()}
    allowed = {key: value for key, value in found.items() if dtype != "auto" or errors[key] <= TOLERANCE}
    best = min(allowed, key=lambda key: size(allowed[key][1]) + (FASTER if key[1] != stored else 0.0))
    inference, measured, _ = allowed[best]
    reason = "the only candidate" if len(found) == 1 else f"the fastest of {len(found)} candidates"
    dense = None
    if original is not None:
        block = original.to(layer.fff_bias.device, layer.fff_bias.dtype).eval()
        dense = times(block, inputs)
        slower = [n for n, own, other in zip(TOKENS, measured, dense, strict=True) if own > other]
        if slower and backend == "auto":
            reason = f"the trees are slower than the block they replaced, at {slower[0]} tokens"
            deployment = LayerDeployment(name, "dense", stored, reason, dense, dense, errors[best])
            return Inference("dense", dense=block), deployment
        reason += "; slower than the dense block" if slower else "; faster than the dense block"
    return inference, LayerDeployment(name, *best, reason, measured, dense, errors[best])


def _row_types(dtype: str, stored: str) -> list[str]:
    """The row types to try: the parameters' own first."""
    if dtype != "auto":
        return [dtype]
    return [stored, "bfloat16"] if stored == "float32" else [stored]


def _backends(backend: str, layer: FFFLayer) -> list[str]:
    """The backends to try: what would compute without a deployment first."""
    if backend != "auto":
        return [backend]
    known = reversed(on_device(layer.fff_bias.device.type).values())
    return [found.NAME for found in known if _why_not(found, "auto", layer) is None]


def _inputs(layer: FFFLayer) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    like = layer.fff_bias
    drawn = (
        torch.randn(tokens, layer.spec.d_in, generator=generator, dtype=torch.float32) for tokens in TOKENS
    )
    size = _typical_size(layer)
    return [(size * x).to(like.device, like.dtype) for x in drawn]


@torch.no_grad()
def _typical_size(layer: FFFLayer) -> float:
    """The size of random inputs; of a sparse layer such that they skip about as many neurons as text does."""
    if not layer.spec.leaf_sparsity:
        return 1.0
    drawn = torch.randn(
        SAMPLE, layer.spec.d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )

    def off(size: float) -> float:
        x = (size * drawn).to(layer.fff_bias)
        _, _, leaf = cmm(x, layer.weights, layer.spec.activation)
        return abs(skipped_share(layer, x, leaf) - layer.spec.leaf_sparsity)

    return min(SIZES, key=off)


@torch.inference_mode()
def _outputs(call: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> Tensor:
    return torch.cat([call(x) for x in inputs])


@contextmanager
def _inferring(layer: FFFLayer, inference: Inference) -> Iterator[None]:
    """Have a layer compute in one way in the body."""
    usual, layer.inference = layer.inference, inference
    try:
        yield
    finally:
        layer.inference = usual


def _relative_error(outputs: Tensor, exact: Tensor) -> float:
    size = exact.double().norm()
    return float((outputs.double() - exact.double()).norm() / size) if size else 0.0
