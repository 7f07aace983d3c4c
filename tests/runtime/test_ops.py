from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zoo.reference import SPARSE, VARIANTS, integers, loop, masked_dense, normals, tree_tensors

from fffconvert.runtime import ACTIVATIONS, Weights, cmm, cpu, reference
from fffconvert.runtime.backend import Passed

OP = torch.ops.fffconvert.cmm.default
BACKWARD = torch.ops.fffconvert.cmm_backward.default
variants = pytest.mark.parametrize("variant", (VARIANTS | SPARSE).values(), ids=VARIANTS | SPARSE)


@pytest.fixture(params=[reference.DENSE_ROWS, 0], ids=["dense and gathered", "gathered"])
def dense_rows(request, monkeypatch):
    """Has the reference compute, in each of its ways."""
    monkeypatch.setattr(reference, "DENSE_ROWS", request.param)
    monkeypatch.setattr(cpu, "why_not", lambda *_: "the reference is to")


def draw_exact(tokens=7, d_in=5, seed=0, **shape):
    generator = torch.Generator().manual_seed(seed)
    weights = Weights(**tree_tensors(integers(generator), d_in=d_in, **shape))
    return torch.randint(-2, 3, (tokens, d_in), generator=generator).float(), weights


def draw_random(tokens=6, d_in=5, d_out=4, depth=2, trees=2, seed=0, dtype=torch.float64, **shape):
    generator = torch.Generator().manual_seed(seed)
    draw = normals(generator, dtype)
    weights = Weights(**tree_tensors(draw, d_in=d_in, d_out=d_out, depth=depth, trees=trees, **shape))
    return torch.randn(tokens, d_in, generator=generator, dtype=torch.float64).to(dtype), weights


def require_grad(x: Tensor, weights: Weights) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in (x, *weights) if tensor is not None]


def assert_equals_loop(x: Tensor, weights: Weights) -> None:
    y, logits, leaf = cmm(x, weights, "relu")
    expected_y, expected_logits, expected_leaf = loop(x, weights._asdict(), F.relu)
    assert expected_logits.abs().gt(0.5).all()
    assert torch.equal(leaf, expected_leaf)
    assert torch.equal(logits.double(), expected_logits)
    assert torch.equal(y, expected_y.to(x.dtype))


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation gave."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return result


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 9),
    d_in=st.integers(1, 9),
    d_out=st.integers(1, 9),
    trees=st.integers(1, 5),
    depth=st.integers(0, 4),
    branches=st.integers(1, 2),
    leaf_width=st.integers(0, 3),
    gated=st.booleans(),
    sparse=st.booleans(),
    dense_rows=st.sampled_from([0, 2, 32]),
    part_bytes=st.sampled_from([1, 200, 1 << 20]),
    seed=st.integers(0, 1000),
)
def test_any_shape_equals_the_per_token_loop(dense_rows, part_bytes, **shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "DENSE_ROWS", dense_rows)
        patch.setattr(reference, "PART_BYTES", part_bytes)
        patch.setattr(cpu, "why_not", lambda *_: "the reference is to")
        assert_equals_loop(*draw_exact(**shape))


def test_inputs_and_weights_need_not_be_contiguous():
    x, weights = draw_exact(d_in=4, d_out=4, trees=2, depth=6, leaf_width=2, gated=True)
    strided = Weights(*[w if w is None else w.mT.contiguous().mT for w in weights])
    assert not strided.in_weight.is_contiguous()
    for rows in (torch.stack([x, x], 2)[:, :, 0], x.T.contiguous().T):
        assert not rows.is_contiguous()
        inputs = require_grad(rows.detach(), strided)
        assert_equals_loop(inputs[0], strided)
        grads = torch.autograd.grad(cmm(inputs[0], strided, "silu")[0].sum(), inputs)
        plain = require_grad(x, weights)
        for grad, expected in zip(
            grads, torch.autograd.grad(cmm(x, weights, "silu")[0].sum(), plain), strict=True
        ):
            torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("value", [float("nan"), 0.0], ids=["nan", "zero"])
def test_nan_and_zero_go_left(value, dense_rows):
    x, weights = draw_exact(tokens=3, d_out=4, trees=2, depth=2)
    x[1] = value
    weights.in_bias.masked_fill_(torch.tensor(value == 0), 0)
    y, _, leaf = cmm(x, weights, "relu")
    assert leaf[1].tolist() == [0, 0]
    others = x[::2]
    assert torch.equal(y[::2], cmm(others, weights, "relu")[0])


@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype", "compute_dtype"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ],
    ids=str,
)
def test_dtypes(x_dtype, weight_dtype, compute_dtype):
    x, weights = draw_random(branches=2, leaf_width=2)
    x, weights = x.to(x_dtype), Weights(*[w if w is None else w.to(weight_dtype) for w in weights])
    inputs = require_grad(x, weights)
    y, logits, leaf = cmm(x, weights, "gelu")
    assert (y.dtype, logits.dtype, leaf.dtype) == (x_dtype, compute_dtype, torch.int64)
    grads = torch.autograd.grad(y.sum(), inputs)
    assert [grad.dtype for grad in grads] == [x_dtype] + [weight_dtype] * (len(inputs) - 1)


@pytest.mark.parametrize("depth", [3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_floats_are_as_exact_as_dense_torch(dtype, depth):
    x, weights = draw_random(300, 48, 32, depth, trees=3, dtype=dtype)
    published = weights.in_weight.flatten(0, 1), weights.in_bias.flatten(), weights.out_weight.flatten(0, 1).T
    y, _, leaf = cmm(x, weights, "gelu")
    truth, expected_logits, expected_leaf = loop(x, weights._asdict(), F.gelu)
    clear = expected_logits.abs().amin((1, 2)) > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(leaf[clear], expected_leaf[clear])

    naive, margin = masked_dense(x, *published, depth)
    same_path = clear & (margin > 0.05)
    assert same_path.float().mean() > 0.1
    naive_error = (naive.double() - truth)[same_path].abs().max()
    assert (y.double() - truth)[clear].abs().max() <= 2 * naive_error + 1e-6


@variants
def test_gradients(variant, dense_rows):
    x, weights = draw_random(tokens=4, d_in=3, d_out=2, depth=1, **variant)
    inputs = require_grad(x, weights)
    assert cmm(x, weights, "silu")[1].abs().min() > 1e-3
    names = [name for name, tensor in weights._asdict().items() if tensor is not None]

    def outputs(x, *tensors):
        return cmm(x, Weights(**dict(zip(names, tensors, strict=True))), "silu")[:2]

    assert torch.autograd.gradcheck(outputs, inputs)


def test_gradients_do_not_depend_on_the_parts(monkeypatch, dense_rows):
    x, weights = draw_exact(tokens=11, d_out=4, trees=3, depth=3, branches=2, leaf_width=2)
    inputs = require_grad(x, weights)
    whole = torch.autograd.grad(cmm(x, weights, "relu")[0].sum(), inputs)
    monkeypatch.setattr(reference, "PART_BYTES", 100)
    parts = torch.autograd.grad(cmm(x, weights, "relu")[0].sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert all(grad.any() for grad in whole)


def test_low_precision_gradients_are_summed_in_float32():
    x, weights = draw_random(tokens=400, depth=6, dtype=torch.bfloat16, branches=2, leaf_width=2, gated=True)
    inputs = require_grad(x, weights)
    grads = torch.autograd.grad(cmm(x, weights, "gelu")[0].sum(), inputs)
    precise = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = torch.autograd.grad(cmm(precise[0], Weights(*precise[1:]), "gelu")[0].sum(), precise)
    for grad, expected in zip(grads, exact, strict=True):
        torch.testing.assert_close(grad.double(), expected, rtol=2**-8, atol=1e-5)


@variants
def test_only_visited_rows_receive_a_gradient(variant, dense_rows):
    x, weights = draw_random(tokens=3, depth=3, **variant)
    inputs = require_grad(x, weights)
    y, _, leaf = cmm(x, weights, "silu")
    grads = torch.autograd.grad(y.square().sum(), inputs[1:])
    names = [name for name, tensor in weights._asdict().items() if tensor is not None]
    places = [(i, t) for i in range(3) for t in range(2)]
    visits = {(t, (int(leaf[i, t]) + 2**4 >> up) - 1) for i, t in places for up in range(1, 5)}
    ends = {(t, int(leaf[i, t])) for i, t in places}
    for name, grad in zip(names, grads, strict=True):
        touched = {(place[0], place[1]) for place in grad.nonzero().tolist()}
        if name == "out_weight" and "branches" in variant:
            touched = {(t, row // 2) for t, row in touched}
        if name == "leaf_threshold":
            assert not touched
        elif name.startswith("leaf_") and "sparse" in variant:
            assert touched <= ends, name
        else:
            assert touched == (ends if name.startswith("leaf") else visits), name


def test_logits_alone_can_be_differentiated():
    x, weights = draw_random()
    x.requires_grad_()
    (grad,) = torch.autograd.grad(cmm(x, weights, "gelu")[1][:, :, 0].sum(), x)
    torch.testing.assert_close(grad, weights.in_weight[:, 0].sum(0).expand_as(x))


def test_second_derivatives_are_refused():
    x, weights = draw_random()
    x.requires_grad_()
    (grad,) = torch.autograd.grad(cmm(x, weights, "gelu")[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="only once"):
        grad.sum().backward()


def test_large_gathers_are_split(monkeypatch):
    x, weights = draw_random(tokens=400, d_in=32, d_out=32, depth=6, trees=3, dtype=torch.float32, branches=2)
    inputs = require_grad(x, weights)
    y, logits, leaf = cmm(x, weights, "gelu")
    unsplit, split = LargestTensor(), LargestTensor()
    with torch.no_grad():
        for mode, part_bytes in ((unsplit, 1 << 30), (split, 4096)):
            monkeypatch.setattr(reference, "PART_BYTES", part_bytes)
            with mode:
                reference.forward(x, weights, "gelu")
                reference.backward(y, logits, Passed(x, weights, logits, leaf, "gelu"))
    largest_argument = max(tensor.numel() * tensor.element_size() for tensor in (*inputs, y, logits))
    assert unsplit.bytes == 400 * 3 * 32 * 4 > largest_argument
    assert split.bytes == largest_argument


BROKEN = {
    "activation": ({}, {}, "swoosh", "unknown activation 'swoosh'"),
    "width of x": ({}, {"x": (6, 4)}, "gelu", r"x is \[6, 4\]; expected \[tokens, 5\]"),
    "rank of x": ({}, {"x": (1, 6, 5)}, "gelu", r"x is \[1, 6, 5\]; expected \[tokens, 5\]"),
    "no whole tree": ({}, {"in_weight": (2, 6, 5)}, "gelu", r"in_weight is \[2, 6, 5\]"),
    "rank of in_weight": ({}, {"in_weight": (7, 5)}, "gelu", "in_weight is .*; expected 3 axes"),
    "in_bias": ({}, {"in_bias": (2, 6)}, "gelu", r"in_bias is \[2, 6\]; expected \[2, 7\]"),
    "output rows": ({}, {"out_weight": (2, 21, 4)}, "gelu", r"out_weight is .*; expected \[2, 7, 4\]"),
    "trees of out_weight": (
        {},
        {"out_weight": (1, 14, 4)},
        "gelu",
        r"expected \[2, 14, 4\]",
    ),
    "constant": ({"branches": 2}, {"leaf_constant": (2, 7, 4)}, "gelu", "leaf_constant is"),
    "leaf width": ({"leaf_width": 3}, {"leaf_in_bias": (2, 8, 2)}, "gelu", r"expected \[2, 8, 3\]"),
    "leaf rank": ({"leaf_width": 3}, {"leaf_out_weight": (2, 8)}, "gelu", "expected 4 axes"),
    "threshold": ({"leaf_width": 3}, {"leaf_threshold": (2, 8)}, "gelu", r"expected \[2, 8, 3\]"),
    "threshold alone": ({}, {"leaf_threshold": (2, 8, 3)}, "gelu", "no leaf blocks"),
    "half a leaf block": ({"leaf_width": 3}, {"leaf_in_bias": None}, "gelu", "leaf blocks have only"),
    "half a gate": ({}, {"leaf_gate_bias": (2, 8, 3)}, "gelu", "leaf blocks have only leaf_gate_bias"),
}


@pytest.mark.parametrize(("options", "changes", "activation", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_broken_rules_are_named(device, options, changes, activation, message):
    x, weights = draw_random(**options)
    tensors = {"x": x, **weights._asdict()}
    tensors |= {name: shape and torch.zeros(shape, dtype=x.dtype) for name, shape in changes.items()}
    tensors = {name: tensor if tensor is None else tensor.to(device) for name, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match=message):
        OP(*tensors.values(), activation)


def test_weights_of_several_dtypes_are_refused():
    x, weights = draw_random()
    with pytest.raises(RuntimeError, match=r"weights are torch.float32, torch.float64"):
        cmm(x, weights._replace(in_bias=weights.in_bias.float()), "gelu")
    with pytest.raises(RuntimeError, match=r"x is torch.int64"):
        cmm(x.long(), weights, "gelu")


@variants
def test_opcheck(variant):
    x, weights = draw_random(**variant)
    require_grad(x, weights)
    torch.library.opcheck(OP, (x, *weights, "gelu"))
    with torch.no_grad():
        y, logits, leaf = cmm(x, weights, "gelu")
        arguments = (torch.ones_like(y), torch.ones_like(logits), x, *weights, logits, leaf, "gelu")
    detached = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
    for rows in (True, False):
        torch.library.opcheck(BACKWARD, [*detached, rows])
    assert len(BACKWARD(*detached, False)) == 1


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_weights_leave_the_gradient_of_the_input(variant, dtype):
    x, weights = draw_random(tokens=40, dtype=dtype, **variant)
    inputs = require_grad(x, weights)
    (expected, *_) = torch.autograd.grad(cmm(x, weights, "silu")[0].square().sum(), inputs, allow_unused=True)
    frozen = Weights(*[w if w is None else w.detach() for w in weights])
    (found,) = torch.autograd.grad(cmm(x, frozen, "silu")[0].square().sum(), [x])
    assert torch.equal(found, expected)


@variants
def test_meta_has_the_shapes_and_dtypes_of_a_real_run(variant):
    x, weights = draw_random(dtype=torch.bfloat16, **variant)
    meta = Weights(*[w if w is None else w.to("meta") for w in weights])
    for actual, expected in zip(cmm(x.to("meta"), meta, "gelu"), cmm(x, weights, "gelu"), strict=True):
        assert actual.is_meta
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)


def test_tracing_gives_one_node():
    x, weights = draw_random()
    traced = make_fx(lambda x, *w: cmm(x, Weights(*w), "gelu")[0], tracing_mode="symbolic")(x, *weights[:3])
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == [OP] + 3 * [operator.getitem]


@variants
def test_compiles_whole_with_a_dynamic_batch(variant):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cmm, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (11, 13, 17):
        x, weights = draw_random(tokens=tokens, **variant)
        inputs = require_grad(x, weights)
        results = [run(x, weights, "gelu") for run in (cmm, compiled)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        grads = [torch.autograd.grad(y.sum() + logits.sum(), inputs) for y, logits, _ in results]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(dtype):
    x, weights = draw_random(dtype=torch.float32, branches=2, leaf_width=2, gated=True)
    inputs = require_grad(x, weights)
    plain = cmm(x, weights, "gelu")
    expected = torch.autograd.grad(plain[0].sum(), inputs)
    with torch.autocast("cpu", dtype=dtype):
        cast = cmm(x, weights, "gelu")
        grads = torch.autograd.grad(cast[0].sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(expected, grads, strict=True))


def test_every_activation_runs_through_the_op():
    x, weights = draw_random(tokens=3, leaf_width=2)
    for name, activation in ACTIVATIONS.items():
        expected, _, _ = loop(x, weights._asdict(), activation.fn)
        torch.testing.assert_close(cmm(x, weights, name)[0], expected)
