"""Every backend that runs here, held to the per-token loop with small integers, whose sums are exact."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from runtime.cuda.emulation import COMPILER, installed
from zoo.reference import SPARSE, VARIANTS, integers, loop, tree_tensors

from fffconvert.planning import FFFSpec
from fffconvert.runtime import VECTORS, Inference, Scales, Weights, cpu, cuda, reference
from fffconvert.runtime.backend import Passed, Status
from fffconvert.runtime.backends import BACKENDS, choose, named, on_device
from fffconvert.tree import FFFLayer

COMPILED = (torch.float32, torch.bfloat16, torch.int8)
"""Types of the emulated kernels, which take seconds to compile for each pair; a card has them all."""


def on_card(backend):
    return backend is cuda and cuda.status().available


CASES = [
    pytest.param(
        backend,
        x,
        rows,
        (backend, kind),
        id=f"{backend.NAME}-{kind}-{x}-{rows}".replace("torch.", ""),
        marks=[pytest.mark.gpu] if on_card(backend) else [],
    )
    for backend in BACKENDS
    for x, rows in product(backend.SUPPORT.inputs, backend.SUPPORT.rows)
    for kind in (cpu.instruction_sets() if backend is cpu else [""])
    if backend is not cuda or on_card(backend) or {x, rows} <= set(COMPILED)
]
FORMS = VARIANTS | SPARSE
D_IN, D_OUT, TOKENS = 19, 21, 70


@pytest.fixture
def device(request, monkeypatch):
    """Where the backend under test computes: CuPy's kernels, where there is no card, emulated on the CPU."""
    backend, kind = request.param
    if backend is cuda:
        monkeypatch.setattr(cuda, "FEW_TOKENS", 5)
    if backend is cuda and not cuda.status().available:
        if COMPILER is None:
            pytest.skip("needs a card, or a C++ compiler that knows _Float16")
        monkeypatch.setattr(cuda, "status", lambda: Status(True, "emulated"))
        monkeypatch.setattr(cuda, "SUPPORT", replace(cuda.SUPPORT, device="cpu"))
        with installed():
            yield "cpu"
    elif kind:
        before = cpu.instruction_set()
        cpu.use_instruction_set(kind)
        yield "cpu"
        cpu.use_instruction_set(before)
    else:
        yield backend.SUPPORT.device or "cpu"


def drawn(form, trees, depth):
    """Inputs and weights in float64."""
    generator = torch.Generator().manual_seed(0)
    tensors = tree_tensors(integers(generator), d_in=D_IN, d_out=D_OUT, trees=trees, depth=depth, **form)
    x = torch.randint(-2, 3, (TOKENS, D_IN), generator=generator).double()
    return x, Weights(**{name: tensor.double() for name, tensor in tensors.items()})


def scales_of(weights):
    """1 and 2 in turns."""

    def scale(rows):
        return (1 + torch.arange(rows[..., 0].numel()) % 2).view(rows.shape[:-1]).float()

    given = {name: getattr(weights, name) for name in Scales._fields}
    return Scales(**{name: scale(rows) for name, rows in given.items() if rows is not None})


@cache
def truth(form, trees, depth, scaled):
    """Output, logits and leaves by the loop; given gradients of the first two, and those of the rest."""
    x, weights = drawn(FORMS[form], trees, depth)
    if scaled:
        scales = scales_of(weights)._asdict()
        rows = {n: getattr(weights, n) * s[..., None] for n, s in scales.items() if s is not None}
        weights = weights._replace(**rows)
    inputs = [tensor.requires_grad_() for tensor in (x, *weights) if tensor is not None]
    y, logits, leaf = loop(x, weights._asdict(), F.relu)
    assert logits.abs().min() > 0.5
    generator = torch.Generator().manual_seed(1)
    given = [torch.randint(-2, 3, t.shape, generator=generator).double() for t in (y, logits)]
    gradients = torch.autograd.grad((y, logits), inputs, given, allow_unused=True, materialize_grads=True)
    return y.detach(), logits.detach(), leaf, given, gradients


@pytest.mark.parametrize(("trees", "depth"), [(1, 0), (3, 2), (2, 6)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("backend", "x_dtype", "row_dtype", "device"), CASES, indirect=["device"])
def test_equals_the_loop_exactly(backend, x_dtype, row_dtype, form, trees, depth, device):
    int8 = row_dtype == torch.int8
    x, weights = drawn(FORMS[form], trees, depth)
    scales = Scales(*(s if s is None else s.to(device) for s in scales_of(weights))) if int8 else Scales()
    types = {name: torch.float32 if int8 and name in VECTORS else row_dtype for name in Weights._fields}
    x = x.to(device, x_dtype)
    weights = Weights(**{n: w if w is None else w.to(device, types[n]) for n, w in weights._asdict().items()})
    bias = torch.arange(1.0 - D_OUT, 1, device=device)
    if reason := backend.why_not("inference", x, weights, bias):
        assert form in SPARSE
        pytest.skip(reason)
    y, logits, leaf, given, gradients = truth(form, trees, depth, int8)

    for tokens in (1, 5, TOKENS, 0):
        some = x[:tokens]
        if backend.why_not("inference", some, weights, bias) is None:
            found = backend.inference(some, bias, weights, scales, "relu")
            assert torch.equal(found.cpu(), (y[:tokens] + bias.cpu()).to(x_dtype))
        if not int8 and backend.why_not("forward", some, weights) is None:
            results = [result.cpu() for result in backend.forward(some, weights, "relu")]
            assert torch.equal(results[0], y[:tokens].to(x_dtype))
            assert torch.equal(results[1].double(), logits[:tokens])
            assert torch.equal(results[2], leaf[:tokens])
    if int8:
        return
    unable = backend.why_not("backward", x, weights)
    assert unable is None or (x_dtype, row_dtype) != (torch.float32, torch.float32)
    if unable is None:
        like = weights.compute_dtype(x)
        passed = Passed(x, weights, logits.to(device, like), leaf.to(device), "relu")
        grads = given[0].to(device, x_dtype), given[1].to(device, like)
        found = backend.backward(*grads, passed)
        types = [x_dtype] + [row_dtype] * (len(gradients) - 1)
        for one, expected, dtype in zip(found, gradients, types, strict=True):
            assert torch.equal(one.cpu(), expected.to(dtype))
        (alone,) = backend.backward(*grads, passed, rows=False)
        assert torch.equal(alone, found[0])


@pytest.mark.parametrize("trunk", [0, 3])
@pytest.mark.parametrize("backend", ["auto", *(found.NAME for found in BACKENDS)])
def test_layers_compute_with_it(backend, trunk):
    if (found := named(backend)) is not None and not found.status().available:
        pytest.skip(found.status().reason)
    device = (found and found.SUPPORT.device) or "cpu"
    layer = FFFLayer(FFFSpec(D_IN, D_OUT, 3, trees=2, trunk=trunk, branch_outputs=True, activation="relu"))
    fill = integers(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(fill(name.removeprefix("fff_"), tuple(parameter.shape)))
        x = torch.randint(-2, 3, (9, D_IN)).float()
        own = {name.removeprefix("fff_"): parameter for name, parameter in layer.named_parameters()}
        expected = loop(x, own, F.relu)[0].float()
        layer.inference = Inference(backend)
        assert torch.equal(layer.to(device)(x.to(device)).cpu(), expected)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.NAME)
def test_says_why_it_does_not_compute_something(backend, monkeypatch):
    monkeypatch.setattr(cuda, "status", lambda: Status(True, "pretended"))
    _, weights = drawn({}, 1, 1)
    weights = Weights(*(w if w is None else w.float() for w in weights))
    device = backend.SUPPORT.device or "cpu"
    elsewhere = torch.empty(2, D_IN, device="meta")
    if backend.SUPPORT.device is not None:
        reason = backend.why_not("inference", elsewhere, weights)
        assert reason == f"it computes on {device}, the tensors are on meta; move them first"
    monkeypatch.setattr(backend, "SUPPORT", replace(backend.SUPPORT, device=None))
    assert "its inputs are torch.float32" in backend.why_not("inference", elsewhere.int(), weights)
    assert "not torch.int32" in backend.why_not(
        "inference", elsewhere, weights._replace(in_weight=weights.in_weight.int())
    )
    monkeypatch.setattr(backend, "SUPPORT", replace(backend.SUPPORT, operations=("inference",)))
    assert backend.why_not("backward", elsewhere, weights) == "it computes inference, not backward"


def test_what_nobody_insists_on_is_chosen_by_device_and_types():
    x, weights = drawn({}, 1, 1)
    single = Weights(*(w if w is None else w.float() for w in weights))
    best = cpu if cpu.library() is not None else reference
    assert choose("forward", x.float(), single) is best
    assert choose("forward", x, weights) is reference
    assert choose("forward", x.float().to("meta"), single) is reference
    assert list(on_device("cpu")) == ["reference", "cpu"]
    assert list(on_device("cuda")) == ["reference", "cupy"]
