"""What the launch code asks of CuPy, and when it leaves the work to the reference."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from runtime.cuda.emulation import needs_compiler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zoo.reference import integers, normals, tree_tensors

from fffconvert.errors import FFFError
from fffconvert.runtime import Scales, Weights, cuda, cupy_kernels, cupy_steps, reference
from fffconvert.runtime.backend import Passed, Status
from fffconvert.runtime.rows import store_rows

pytestmark = needs_compiler
SHAPE = {"d_in": 16, "d_out": 16, "trees": 2, "depth": 3, "branches": 2, "leaf_width": 3, "gated": True}


def draw(tokens=6, maker=integers, **options):
    generator = torch.Generator().manual_seed(0)
    values = (generator,) if maker is integers else (generator, torch.float32)
    weights = Weights(**tree_tensors(maker(*values), **(SHAPE | options)))
    x = torch.randint(-2, 3, (tokens, weights.in_weight.shape[2]), generator=generator).float()
    return x, weights


def gradients(x, weights):
    y, logits, leaf = reference.forward(x, weights, "relu")
    return [
        f(y, logits, Passed(x, weights, logits, leaf, "relu")) for f in (cuda.backward, reference.backward)
    ]


@pytest.fixture
def builds(monkeypatch):
    """The copies of the kernels that were asked for."""
    asked = []
    original = cupy_kernels._kernel
    monkeypatch.setattr(
        cupy_kernels,
        "_kernel",
        lambda index, build, name: asked.append(build) or original(index, build, name),
    )
    return asked


@pytest.mark.parametrize("few", [0, 100])
def test_operands_need_not_be_contiguous(stand_in, monkeypatch, few):
    monkeypatch.setattr(cuda, "FEW_TOKENS", few)
    x, weights = draw()
    strided = Weights(*[w if w is None else w.mT.contiguous().mT for w in weights])
    rows = torch.stack([x, x], 2)[:, :, 0]
    assert not rows.is_contiguous()
    assert not strided.in_weight.is_contiguous()
    expected = reference.forward(x, weights, "relu")
    assert all(map(torch.equal, cuda.forward(rows, strided, "relu"), expected))
    grads, expected_grads = gradients(rows, strided)
    assert all(map(torch.equal, grads, expected_grads))


def test_addresses_and_widths_decide_how_much_is_loaded_at_once(stand_in, builds):
    x, weights = draw()
    shifted = torch.cat([torch.zeros(1), x.flatten()])[1:].view_as(x)
    assert shifted.data_ptr() % 16
    expected = reference.forward(x, weights, "relu")
    for rows, vector in ((x, 4), (shifted, 1)):
        assert all(map(torch.equal, cuda.forward(rows, weights, "relu"), expected))
        assert builds.pop().vector == vector
    for d_in, d_out, vector in ((18, 16, 1), (16, 18, 1), (20, 12, 4)):
        cuda.forward(*draw(d_in=d_in, d_out=d_out), "relu")
        assert builds.pop().vector == vector


@pytest.mark.parametrize(
    ("capability", "x", "rows", "tensor"),
    [
        ("80", torch.float16, torch.float16, True),
        ("90", torch.bfloat16, torch.int8, True),
        ("75", torch.float16, torch.float16, False),
        ("80", torch.float32, torch.float32, False),
        ("80", torch.bfloat16, torch.float16, False),
        ("80", torch.float32, torch.int8, False),
    ],
)
def test_tensor_cores_where_the_card_and_the_types_allow_them(stand_in, capability, x, rows, tensor):
    stand_in.capability = capability
    operands = torch.zeros(2, 16, dtype=x), torch.zeros(1, 16, dtype=rows)
    build = cupy_kernels.build_for(*operands, operands)
    assert build.tensor == tensor
    assert f"-DFFF_TENSOR={int(tensor)}" in build.options


def test_modules_are_made_once_for_each_device_and_kind(stand_in):
    x, weights = draw()
    for _ in range(3):
        cuda.forward(x, weights, "relu")
        cuda.inference(x, torch.zeros(16), weights, Scales(), "gelu")
    assert stand_in.modules == 1
    build = cupy_kernels.build_for(x, weights.in_weight, (x,))
    assert cupy_kernels._module(0, build) is not cupy_kernels._module(1, build)
    assert stand_in.modules == 2


def test_few_tokens_are_one_launch_and_many_share_rows(stand_in, monkeypatch):
    monkeypatch.setattr(cuda, "FEW_TOKENS", 6)
    cuda.inference(draw(6)[0], torch.zeros(16), draw()[1], Scales(), "relu")
    assert stand_in.launches == ["token_forward"]
    stand_in.launches.clear()
    cuda.inference(draw(7)[0], torch.zeros(16), draw()[1], Scales(), "relu")
    assert stand_in.launches == ["walk_tiles", "dot_rows", "dot_rows", *["sum_rows"] * 6]


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        (3_000_000, {"d_in": 1, "d_out": 1, "trees": 1, "depth": 0}),
        (70_000, {"d_in": 4, "d_out": 4, "trees": 3, "depth": 8}),
        (9, {"d_in": 4, "d_out": 4, "trees": 65535, "depth": 0}),
        (9, {"d_in": 4, "d_out": 50_000, "trees": 1, "depth": 12}),
        (2, {"d_in": 1, "d_out": 1, "trees": 1, "depth": 0, "leaf_width": 65535}),
    ],
)
def test_large_sizes_stay_within_the_limits_of_a_launch(stand_in, monkeypatch, tokens, options):
    monkeypatch.setattr(cuda, "FEW_TOKENS", 0)
    stand_in.dry = True
    plain = {"branches": 1, "leaf_width": 0, "gated": False}
    shapes = tree_tensors(lambda name, shape: torch.zeros(shape), **(plain | options))
    weights = Weights(**shapes)
    x = torch.zeros(tokens, options["d_in"])
    pretend(monkeypatch)
    assert cuda.why_not("forward", x, weights) is None
    if options["trees"] > 100:  # one tree after the other, here two stand for all
        weights = Weights(*[w if w is None else w[:2] for w in weights])
    y, logits, leaf = cuda.forward(x, weights, "relu")
    cuda.backward(y, logits, Passed(x, weights, logits, leaf.zero_(), "relu"))
    assert "walk_tiles" in stand_in.launches


class NoWaiting(TorchDispatchMode):
    """Fails where the host would have to wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not {"_local_scalar_dense", "nonzero", "unique", "is_nonzero", "item"} & {
            func.overloadpacket.__name__.removeprefix("_")
        }, func
        assert func is not torch.ops.aten._local_scalar_dense.default
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            assert (kwargs or {}).get("device") is None
        assert all(not isinstance(leaf, torch.Tensor) or not leaf.is_meta for leaf in tree_leaves(result))
        return result


@pytest.mark.parametrize("few", [0, 100])
def test_the_host_never_waits(stand_in, monkeypatch, few):
    monkeypatch.setattr(cuda, "FEW_TOKENS", few)
    x, weights = draw()
    with NoWaiting():
        y, logits, leaf = cuda.forward(x, weights, "relu")
        cuda.inference(x, torch.zeros(16), weights, Scales(), "relu")
        cuda.backward(y, logits, Passed(x, weights, logits, leaf, "relu"))


def pretend(monkeypatch, available=True):
    """Have the ops take CPU tensors for those of a card that is there, or is not."""
    monkeypatch.setattr(cuda, "status", lambda: Status(available, "no card"))
    monkeypatch.setattr(cuda, "SUPPORT", dataclasses.replace(cuda.SUPPORT, device="cpu"))


@pytest.fixture(params=[True, False], ids=["available", "not available"])
def available(request, monkeypatch):
    pretend(monkeypatch, request.param)
    return request.param


def call_all(x, bias, weights):
    """The three ops."""
    op = torch.ops.fffconvert
    y, logits, leaf = op.cmm(x, *weights, "relu")
    z = op.cmm_inference(x, bias, *weights, *Scales(), "relu")
    return [y, logits, leaf, z, *op.cmm_backward(y, logits, x, *weights, logits, leaf, "relu", True)]


def call_reference(x, bias, weights):
    y, logits, leaf = reference.forward(x, weights, "relu")
    z = reference.inference(x, bias, weights, Scales(), "relu")
    return [y, logits, leaf, z, *reference.backward(y, logits, Passed(x, weights, logits, leaf, "relu"))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_reference_does_what_kernels_do_not_cover(stand_in, available, dtype):
    x, weights = draw()
    x, weights = x.to(dtype), Weights(*[w if w is None else w.to(dtype) for w in weights])
    arguments = x, torch.ones(16, dtype=dtype), weights
    assert all(map(torch.equal, call_all(*arguments), call_reference(*arguments)))
    assert bool(stand_in.launches) == (available and dtype == torch.float32)


def test_no_tokens(stand_in, available):
    x, weights = draw(tokens=0)
    arguments = x, torch.ones(16), weights
    assert all(map(torch.equal, call_all(*arguments), call_reference(*arguments)))
    assert not stand_in.launches


def test_autocast_changes_nothing(stand_in, monkeypatch):
    pretend(monkeypatch)
    x, weights = draw(maker=normals)
    expected = call_all(x, torch.ones(16), weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, call_all(x, torch.ones(16), weights), expected))


def test_what_is_not_covered(monkeypatch):
    x, weights = draw()
    pretend(monkeypatch)
    double = torch.zeros(16, dtype=torch.float64)
    assert cuda.why_not("inference", x, weights) is None
    for tokens, trees, bias, reason in (
        (x.double(), weights, None, "its inputs are torch.float32, .*, not torch.float64"),
        (x, weights._replace(in_bias=weights.in_bias.double()), None, "its biases are torch.float32"),
        (x, weights, double, "its biases are torch.float32"),
        (x[:0], weights, None, "nothing to compute"),
        (x, weights._replace(out_weight=weights.out_weight.to("meta")), None, "on several devices"),
        (x, weights._replace(in_weight=torch.zeros(65536, 1, 1)), None, "up to 65535 trees"),
    ):
        assert re.search(reason, cuda.why_not("inference", tokens, trees, bias))
    pretend(monkeypatch, False)
    assert cuda.why_not("inference", x, weights) == "no card"


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("logits", lambda t: t.double(), r"argument 2 of token_forward is torch.float64"),
        ("leaf", lambda t: t.int(), r"argument 3 of token_forward is torch.int32"),
        ("y", lambda t: t.half(), r"argument 1 of token_forward is torch.float16"),
        ("x", lambda t: t.T.contiguous().T, "argument 0 of token_forward .* with gaps"),
    ],
)
def test_pointers_of_other_types_or_with_gaps_are_refused(stand_in, name, change, found):
    x, weights = draw()
    given = {"x": x, "y": torch.empty(6, 16), "logits": torch.empty(6, 2, 4)}
    given["leaf"] = torch.empty(6, 2, dtype=torch.int64)
    given[name] = change(given[name])
    with pytest.raises(FFFError, match=found):
        cupy_steps.token_forward(*given.values(), None, cupy_steps.layer_for(x, weights, Scales(), "relu"))


def test_rows_and_scales_of_other_types_are_refused(stand_in):
    x, weights = draw()
    stored, scales = store_rows(weights, torch.int8)
    with pytest.raises(FFFError, match=r"a scale is torch.float64 on cpu; expected torch.float32 on cpu"):
        cupy_steps.layer_for(x, stored, scales._replace(out_weight=scales.out_weight.double()), "relu")
    with pytest.raises(FFFError, match=r"rows are torch.float16; expected torch.int8"):
        cupy_steps.layer_for(x, stored._replace(out_weight=weights.out_weight.half()), scales, "relu")


def test_the_first_calls_of_several_threads_compile_once(stand_in):
    x, weights = draw()
    stand_in.dry = True
    build = cupy_steps.layer_for(x, weights, Scales(), "relu").build
    barrier = threading.Barrier(8)
    modules = cupy_kernels._cupy().RawModule

    def slow(**options):
        time.sleep(0.05)
        return modules(**options)

    def first(_):
        barrier.wait()
        return cupy_kernels._kernel(0, build, "token_forward")

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(stand_in, "RawModule", slow)
        assert len(set(map(id, pool.map(first, range(8))))) == 1
    assert stand_in.modules == 1


def test_what_a_token_leaves_in_shared_memory_decides_the_regime(stand_in):
    x, weights = draw()
    assert cupy_steps.fits_one_block(cupy_steps.layer_for(x, weights, Scales(), "relu"))
    wide = Weights(**tree_tensors(lambda name, shape: torch.zeros(shape), **(SHAPE | {"leaf_width": 8000})))
    assert not cupy_steps.fits_one_block(cupy_steps.layer_for(x, wide, Scales(), "relu"))


def test_leaves_with_thresholds_are_left_to_the_reference(monkeypatch):
    shape = SHAPE | {"leaf_width": 3}
    without, with_some = (
        Weights(**tree_tensors(lambda name, shape: torch.zeros(shape), **shape, sparse=sparse))
        for sparse in (False, True)
    )
    x = torch.zeros(2, without.in_weight.shape[2])
    pretend(monkeypatch)
    assert cuda.why_not("inference", x, without) is None
    assert cuda.why_not("inference", x, with_some) == "its leaf blocks have no thresholds"
