"""What torch's default dtype is changes nothing: native code is handed buffers of the types that it knows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo.reference import normals, tree_tensors

import fffconvert as fff
from fffconvert.planning import FFFSpec
from fffconvert.runtime import ACTIVATIONS, Inference, Weights, cmm, cmm_inference
from fffconvert.runtime.rows import ROW_DTYPES, store_rows
from fffconvert.tree import FFFLayer
from fffconvert.tree.routing import TrainingRouting

OTHERS = [torch.float64, torch.bfloat16, torch.float16]
dtypes = st.sampled_from(OTHERS)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


pytestmark = pytest.mark.usefixtures("instruction_set")


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


shapes = st.fixed_dictionaries(
    {
        "d_in": st.integers(1, 40),
        "d_out": st.integers(1, 40),
        "trees": st.integers(1, 3),
        "depth": st.integers(0, 5),
        "branches": st.integers(1, 2),
        "leaf_width": st.integers(0, 6),
        "gated": st.booleans(),
        "sparse": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=dtypes,
    own=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    tokens=st.integers(0, 150),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    row_type=st.sampled_from(sorted(ROW_DTYPES)),
    shape=shapes,
    seed=st.integers(0, 1000),
)
def test_the_ops_give_the_same_bits(dtype, own, tokens, activation, row_type, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = Weights(**tree_tensors(normals(generator, own), **shape))
    x = torch.randn(tokens, shape["d_in"], generator=generator).to(own)
    bias = torch.randn(shape["d_out"], generator=generator).to(own)
    stored, scales = store_rows(weights, ROW_DTYPES[row_type])

    def run():
        inputs = [t.detach().requires_grad_() for t in (x, *weights) if t is not None]
        given = iter(inputs[1:])
        y, logits, leaf = cmm(
            inputs[0], Weights(*[None if w is None else next(given) for w in weights]), activation
        )
        gradients = torch.autograd.grad(y.sum() + logits.sum(), inputs)
        inferred = cmm_inference(x, bias, stored, scales, activation)
        return [y, logits, leaf, *gradients, inferred]

    expected = run()
    with default_dtype(dtype):
        found = run()
    assert_same(found, expected)


ROUTINGS = {
    "hard": None,
    "leaking": {"leak": 0.3, "load_balance": 1.0},
    "soft": {"temperature": 0.5, "leak": 0.2, "entropy": 1.0},
    "straight-through": {"temperature": 0.5, "straight_through": True},
}


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.parametrize("sparsity", [0.0, 0.4])
def test_layers_train_and_answer_the_same(dtype, routing, sparsity):
    shape = {"leaf_width": 5, "leaf_gated": True, "leaf_sparsity": sparsity}
    spec = FFFSpec(24, 20, 3, trees=2, trunk=2, branch_outputs=True, activation="leaky_relu", **shape)
    layer = FFFLayer(spec, dtype=torch.float32)
    x = torch.randn(90, 24)

    def run():
        layer.routing = routing and TrainingRouting(**routing)
        torch.manual_seed(0)
        y = layer(x)
        loss = y.sum() + sum(layer.routing.terms if layer.routing else [])
        gradients = torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True)
        results = [y.detach(), *(g for g in gradients if g is not None)]
        with torch.no_grad():
            for backend in ("auto", "reference", "standard"):
                for row_type in (None, torch.bfloat16, torch.int8):
                    layer.inference = Inference(backend, row_type)
                    results.append(layer(x))
        return results

    expected = run()
    with default_dtype(dtype):
        found = run()
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{"depth": 3, "trunk": 2}, {"depth": 1, "leaf_width": 8, "leaf_sparsity": 0.2}], ids=str
)
def test_converting_and_training_a_model_is_the_same(options, dtype):
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    dense = transformers.BertForMaskedLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    calibration = [{"input_ids": torch.randint(0, 90, (8, 32), generator=generator)} for _ in range(4)]
    ids = calibration[0]["input_ids"]

    def run():
        torch.manual_seed(0)
        model = fff.convert(copy.deepcopy(dense), calibration=calibration, **options)
        model.train()
        torch.manual_seed(0)
        model(input_ids=ids).logits.float().sum().backward()
        return [p for p in model.parameters()], [p.grad for p in model.parameters()]

    expected = run()
    with default_dtype(dtype):
        found = run()
    for ones, others in zip(found, expected, strict=True):
        kept = [(a, b) for a, b in zip(ones, others, strict=True) if b is not None]
        assert_same([a for a, _ in kept], [b for _, b in kept])
