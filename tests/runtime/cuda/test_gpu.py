"""The ops on a real card."""

from __future__ import annotations

import pytest
import torch
from zoo.reference import VARIANTS, integers, normals, tree_tensors

from fffconvert.runtime import Scales, Weights, cmm, cmm_inference, cuda, reference
from fffconvert.runtime.cupy_status import status

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not status().available, reason=status().reason)]
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
OP = torch.ops.fffconvert.cmm.default


@pytest.fixture(params=[True, False], ids=["few tokens", "many tokens"], autouse=True)
def regime(request, monkeypatch):
    monkeypatch.setattr(cuda, "FEW_TOKENS", 10**9 if request.param else 0)


def draw(tokens=300, dtype=torch.float32, exact=True, device="cuda", **shape):
    generator = torch.Generator().manual_seed(0)
    maker = integers(generator) if exact else normals(generator, torch.float32)
    shape = {"d_in": 64, "d_out": 64, "trees": 2, "depth": 7} | shape
    weights = Weights(**tree_tensors(maker, **shape))
    x = torch.randint(-2, 3, (tokens, shape["d_in"]), generator=generator)
    return x.to(device, dtype), Weights(*[w if w is None else w.to(device, dtype) for w in weights])


def require_grad(x, weights):
    return [tensor.requires_grad_() for tensor in (x, *weights) if tensor is not None]


@variants
def test_opcheck(variant):
    x, weights = draw(tokens=20, exact=False, **variant)
    require_grad(x, weights)
    torch.library.opcheck(OP, (x, *weights, "gelu"))


def test_runs_in_a_cuda_graph_and_without_waiting():
    x, weights = draw()
    bias = torch.zeros(64, device="cuda")
    cmm_inference(x, bias, weights, Scales(), "relu")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        cmm_inference(x, bias, weights, Scales(), "relu")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cmm_inference(x, bias, weights, Scales(), "relu")
    x.copy_(-x)
    graph.replay()
    assert torch.equal(y, reference.inference(x, bias, weights, Scales(), "relu"))


def test_runs_on_the_current_stream():
    x, weights = draw(tokens=20_000)
    expected = reference.forward(x, weights, "relu")[0]
    cmm(x, weights, "relu")
    late = torch.zeros_like(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        y = cmm(late, weights, "relu")[0]
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiles_whole(mode):
    x, weights = draw()
    compiled = torch.compile(cmm, fullgraph=True, mode=mode)
    for _ in range(3):
        y = compiled(x, weights, "relu")[0].clone()
    assert torch.equal(y, cmm(x, weights, "relu")[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_another_device_than_the_current():
    x, weights = draw(device="cuda:1")
    assert torch.cuda.current_device() == 0
    y = cmm(x, weights, "relu")[0]
    assert y.device == x.device
    assert torch.equal(y, reference.forward(x, weights, "relu")[0])


def test_gradients_repeat_to_the_bit():
    x, weights = draw(tokens=3000, exact=False, depth=4)
    inputs = require_grad(x, weights)
    runs = [torch.autograd.grad(cmm(x, weights, "gelu")[0].square().sum(), inputs) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
