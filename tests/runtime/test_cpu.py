"""The native CPU kernels against the reference and the per-token loop, for every instruction set there is."""

from __future__ import annotations

import ast
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from zoo.reference import SPARSE, VARIANTS, integers, normals, tree_tensors

from fffconvert.errors import FFFError
from fffconvert.runtime import ACTIVATIONS, Scales, Weights, cmm, cmm_inference, cpu, reference
from fffconvert.runtime.backend import Passed
from fffconvert.runtime.rows import ROW_DTYPES, store_rows

pytestmark = [
    pytest.mark.skipif(cpu.library() is None, reason="the native library was not built"),
    pytest.mark.usefixtures("instruction_set"),
]
variants = pytest.mark.parametrize("variant", (VARIANTS | SPARSE).values(), ids=VARIANTS | SPARSE)
row_types = pytest.mark.parametrize("row_type", ROW_DTYPES.values(), ids=ROW_DTYPES)
EPS = torch.finfo(torch.float32).eps
SENTINEL = 12345.0


@pytest.fixture
def no_reference(monkeypatch):
    """Only the kernels may compute."""

    def refuse(*_):
        raise AssertionError("the reference ran")

    for name in ("forward", "inference", "backward"):
        monkeypatch.setattr(reference, name, refuse)


def draw_integers(tokens: int, seed: int = 0, **shape) -> tuple[Tensor, Weights]:
    generator = torch.Generator().manual_seed(seed)
    weights = Weights(**tree_tensors(integers(generator), **shape))
    return torch.randint(-2, 3, (tokens, shape["d_in"]), generator=generator).float(), weights


def draw_normals(tokens: int, seed: int = 0, **shape) -> tuple[Tensor, Weights]:
    generator = torch.Generator().manual_seed(seed)
    weights = Weights(**tree_tensors(normals(generator, torch.float32), **shape))
    return torch.randn(tokens, shape["d_in"], generator=generator), weights


def each(weights: Weights, change: Callable[[Tensor], Tensor]) -> Weights:
    return Weights(*(None if w is None else change(w) for w in weights))


def in_double(weights: Weights, scales: Scales = Scales()) -> Weights:  # noqa: B008
    """The weights as stored, in float64."""
    wide = {name: w.double() for name, w in weights._asdict().items() if w is not None}
    wide |= {name: wide[name] * s[..., None] for name, s in scales._asdict().items() if s is not None}
    return Weights(**wide)


def assert_close(x: Tensor, y: Tensor, weights: Weights, scales: Scales, activation: str) -> None:
    """Design section 7: tokens clear of the noise floor; twice plain torch's error, plus the floor."""
    precise = in_double(weights, scales)
    exact, logits, _ = reference.forward(x.double(), precise, activation)
    plain = reference.forward(x.float(), each(precise, Tensor.float), activation)[0]
    floor = EPS * math.sqrt(x.shape[1]) * max(1.0, float(x.abs().max()) if x.numel() else 1.0)
    kept = (logits.abs() > 4 * floor).all(2).all(1)
    assert kept.double().mean() > 0.9 or len(x) < 20
    rounding = 2**-8 * float(exact.abs().max()) if y.dtype == torch.bfloat16 and y.numel() else 0.0
    if kept.any():
        size = float(exact.abs().max())
        limit = 2 * float((plain - exact)[kept].abs().max()) + 4 * floor * size + rounding
        assert float((y.double() - exact)[kept].abs().max()) <= limit


@row_types
@variants
@pytest.mark.parametrize("tokens", [1, 7, 70, 300, 700])
def test_random_numbers_are_close(tokens, variant, row_type, no_reference, monkeypatch):
    x, weights = draw_normals(tokens, d_in=67, d_out=50, trees=2, depth=4, **variant)
    bias = torch.randn(50)
    stored, scales = store_rows(weights, row_type)
    y = cmm_inference(x, bias, stored, scales, "gelu")
    monkeypatch.undo()
    assert_close(x, y - bias, stored, scales, "gelu")


@row_types
@pytest.mark.parametrize("tokens", [1, 200, 1500])
def test_bfloat16_inputs(tokens, row_type):
    x, weights = draw_normals(tokens, d_in=64, d_out=48, trees=1, depth=7)
    x, (stored, scales) = x.bfloat16(), store_rows(weights, row_type)
    y = cmm_inference(x, torch.zeros(48), stored, scales, "silu")
    assert y.dtype == torch.bfloat16
    assert_close(x, y, stored, scales, "silu")


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 300),
    d_in=st.integers(1, 70),
    d_out=st.integers(1, 70),
    trees=st.integers(1, 4),
    depth=st.integers(0, 6),
    branches=st.integers(1, 2),
    leaf_width=st.integers(0, 9),
    gated=st.booleans(),
    sparse=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_shape_equals_the_reference_exactly(threads, **shape):
    x, weights = draw_integers(**shape)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = cmm(x, weights, "relu")
    finally:
        torch.set_num_threads(usual)
    for one, other in zip(found, reference.forward(x, weights, "relu"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_derivatives(name, no_reference, monkeypatch):
    x = torch.linspace(-30, 30, 997)[:, None]
    x = torch.cat([x, torch.tensor([[0.0], [1e-20], [-1e-20], [100.0], [-100.0], [3.0], [-3.0]])])
    identity = Weights(torch.ones(1, 1, 1), torch.zeros(1, 1), torch.ones(1, 1, 1))
    x.requires_grad_()
    y = cmm(x, identity, name)[0]
    (slope,) = torch.autograd.grad(y.sum(), x)
    monkeypatch.undo()
    precise = x.detach().double()
    activation = ACTIVATIONS[name]
    for found, function, limit in ((y, activation.fn, 2e-7), (slope, activation.derivative, 1e-6)):
        expected = function(precise)
        assert float(((found.detach() - expected).abs() / (1 + expected.abs())).max()) <= limit


@variants
def test_nothing_is_written_past_the_outputs(variant):
    for tokens in (1, 5, 130, 600):
        x, weights = draw_normals(tokens, d_in=33, d_out=37, trees=1, depth=3, **variant)
        layer = cpu.PreparedLayer(None, weights, Scales(), "gelu")
        guarded = [
            torch.full((tokens + 2, 37), SENTINEL),
            torch.full((tokens + 2, 4), SENTINEL),
            torch.full((tokens + 2, 1), -7, dtype=torch.int64),
        ]
        pointers = [tensor[1:].data_ptr() for tensor in guarded]
        lib = cpu.library()
        lib.fff_forward(layer._address, x.data_ptr(), 33, tokens, pointers[0], 0, *pointers[1:], 1)
        for tensor in guarded:
            sentinel = tensor[0, 0]
            assert (tensor[0] == sentinel).all()
            assert (tensor[-1] == sentinel).all()
            assert not (tensor[1:-1] == sentinel).any()


POINTERS = {
    "type": (lambda t: t.double(), "x is torch.float64"),
    "shape": (lambda t: t[:, :5], r"x is torch.float32 \[4, 5\]"),
    "gaps": (lambda t: torch.cat([t, t], 1)[:, :6], "perhaps with gaps"),
    "device": (lambda t: t.to("meta"), "on meta"),
    "layout": (lambda t: t.to_sparse(), "torch.sparse_coo"),
    "negation": (lambda t: torch._neg_view(t), "perhaps with gaps"),
}


@pytest.mark.parametrize(("change", "found"), POINTERS.values(), ids=POINTERS)
def test_native_code_gets_no_pointer_to_another_kind_of_tensor(change, found):
    with pytest.raises(FFFError, match=f"{found}.*expected torch.float32"):
        cpu.address("x", change(torch.randn(4, 6)), torch.float32, (4, 6))


def test_memory_that_was_given_back_is_refused():
    x = torch.randn(4, 6)
    x.untyped_storage().resize_(0)
    with pytest.raises(FFFError, match=r"expected torch\.float32"):
        cpu.address("x", x, torch.float32, (4, 6))


def test_pointers_come_from_one_place():
    tree = ast.parse(Path(cpu.__file__).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    takers = {f.name for f in functions if "data_ptr" in ast.unparse(f)}
    assert takers == {"address", "_pointer"}  # the second compares two, to see whether something was copied


BACKWARD = {
    "grad_y": ("grad_y", lambda t: t[:, :3], r"grad_y is \[9, 3\]; expected \[9, 4\]"),
    "grad_logits": ("grad_logits", lambda t: t[:5], r"grad_logits is \[5, 2, 4\]"),
    "logits": ("logits", lambda t: t[..., :2], r"logits is \[9, 2, 2\]; expected \[9, 2, 4\]"),
    "type of leaf": ("leaf", lambda t: t.int(), "leaf is .* in int64"),
    "leaf": ("leaf", lambda t: t + 16, "leaf is 1[6-9] to .*; expected 0 to 15"),
}


@pytest.mark.parametrize(("name", "change", "message"), BACKWARD.values(), ids=BACKWARD)
def test_backward_reads_nothing_outside_its_arguments(name, change, message):
    x, weights = draw_normals(9, d_in=5, d_out=4, trees=2, depth=3)
    y, logits, leaf = cmm(x, weights, "gelu")
    given = {"grad_y": y, "grad_logits": logits, "x": x, **weights._asdict(), "logits": logits, "leaf": leaf}
    given[name] = change(given[name])
    with pytest.raises((RuntimeError, FFFError), match=message):
        torch.ops.fffconvert.cmm_backward(*given.values(), "gelu", True)


def test_inputs_may_have_strides(no_reference):
    x, weights = draw_integers(200, d_in=16, d_out=8, trees=2, depth=3)
    expected = cmm(x, weights, "relu")[0]
    wide = torch.full((200, 48), SENTINEL)
    wide[:, 16:32] = x
    for same in (wide[:, 16:32], x.T.contiguous().T, x[:1].expand(200, 16)):
        want = expected if same.stride(0) else expected[:1].expand(200, 8)
        assert torch.equal(cmm(same, weights, "relu")[0], want)


def test_nan_goes_left_and_infinity_right():
    x, weights = draw_normals(9, d_in=5, d_out=4, trees=1, depth=3)
    x[1], x[2, 0], x[3] = math.nan, math.inf, -math.inf
    y, _, leaf = cmm(x, weights, "gelu")
    _, _, expected = reference.forward(x, weights, "gelu")
    assert torch.equal(leaf, expected)
    assert leaf[1] == 0
    assert y[1].isnan().all()
    assert y[[0, *range(4, 9)]].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("tokens", [0, 1, 5, 700])
def test_gradients_equal_the_reference(tokens, branches, threads, no_reference, monkeypatch):
    x, weights = draw_integers(tokens, d_in=35, d_out=22, trees=2, depth=4, branches=branches)
    inputs = [tensor.requires_grad_() for tensor in (x, *weights) if tensor is not None]
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    y, logits, leaf = cmm(x, weights, "relu2")
    grad_y = torch.randint(-3, 4, y.shape).float()
    grad_logits = torch.randint(-3, 4, logits.shape).float()
    found = torch.autograd.grad((y, logits), inputs, (grad_y, grad_logits))
    torch.set_num_threads(usual)
    monkeypatch.undo()
    detached = each(weights, Tensor.detach)
    passed = Passed(x.detach(), detached, logits.detach(), leaf, "relu2")
    expected = reference.backward(grad_y, grad_logits, passed)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_the_same_bits_every_time(threads):
    x, weights = draw_normals(900, d_in=48, d_out=40, trees=2, depth=5)
    inputs = [tensor.requires_grad_() for tensor in (x, *weights) if tensor is not None]
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    runs = [torch.autograd.grad(cmm(x, weights, "gelu")[0].square().sum(), inputs) for _ in range(5)]
    torch.set_num_threads(usual)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_are_computed_by_the_reference(dtype, monkeypatch):
    x, weights = draw_integers(5, d_in=6, d_out=5, trees=2, depth=2)
    calls = []
    usual = reference.forward
    monkeypatch.setattr(reference, "forward", lambda *a: calls.append(1) or usual(*a))
    cmm(x.to(dtype), each(weights, lambda w: w.to(dtype)), "relu")
    assert calls


def test_several_python_threads_at_once():
    x, weights = draw_normals(400, d_in=40, d_out=40, trees=1, depth=8)
    expected = cmm(x, weights, "gelu")[0]

    def run(_):
        return torch.equal(cmm(x, weights, "gelu")[0], expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(200)))


FORKED = """
import os, torch
from fffconvert.runtime import Weights, cmm
torch.set_num_threads(2)
w = Weights(torch.randn(1, 255, 64), torch.randn(1, 255), torch.randn(1, 255, 64))
x = torch.randn(2000, 64)
def compute():
    return cmm(x, w, "gelu")[0].numpy().tobytes()  # torch's own parallel operations hang in a forked child
expected = compute()
child = os.fork()
if child == 0:
    os._exit(0 if compute() == expected else 1)
assert os.waitpid(child, 0)[1] == 0
assert compute() == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_works_in_a_forked_child(instruction_set):
    environment = {**os.environ, cpu.INSTRUCTION_SET: instruction_set}
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120, env=environment)


def test_the_environment_forces_an_instruction_set(instruction_set):
    code = "from fffconvert.runtime import cpu; print(cpu.instruction_set())"
    environment = {**os.environ, cpu.INSTRUCTION_SET: instruction_set}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == instruction_set


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(FFFError, match=r"no native kernels for 'mmx' run here; expected .*(base|neon)"):
        cpu.use_instruction_set("mmx")


def test_without_the_library_the_reference_computes_and_says_so_once(monkeypatch):
    x, weights = draw_integers(5, d_in=6, d_out=5, trees=2, depth=2)
    expected = cmm(x, weights, "relu")[0]
    monkeypatch.setattr(cpu, "library", lambda: None)
    cpu._warn_missing.cache_clear()
    with pytest.warns(UserWarning, match="were not built: install a C.. compiler") as caught:
        found = [cmm(x, weights, "relu")[0] for _ in range(2)]
    assert all(torch.equal(y, expected) for y in found)
    assert len(caught) == 1
    assert not cpu.status().available
    assert cpu.instruction_sets() == []
