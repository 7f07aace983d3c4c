from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fffconvert.planning import FFFSpec
from fffconvert.runtime import Inference, reference
from fffconvert.runtime.reference import Scales
from fffconvert.runtime.rows import store_rows
from fffconvert.runtime.walking import walk
from fffconvert.tree import FFFLayer


def layer_of(seed: int, **options) -> FFFLayer:
    torch.manual_seed(seed)
    layer = FFFLayer(FFFSpec(8, 6, **options)).eval()
    with torch.no_grad():
        for parameter in layer.parameters():  # small integers: all sums are exact
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
        layer.fff_in_bias += 0.5  # no logit is 0
    return layer


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    depth=st.integers(0, 4),
    trees=st.integers(1, 3),
    branch_outputs=st.booleans(),
    leaf_width=st.integers(0, 3),
    gated=st.booleans(),
    sparse=st.booleans(),
    tokens=st.integers(0, 9),
)
def test_equals_the_reference(seed, depth, trees, branch_outputs, leaf_width, gated, sparse, tokens):
    layer = layer_of(
        seed, depth=depth, trees=trees, branch_outputs=branch_outputs, leaf_width=leaf_width,
        leaf_gated=gated and leaf_width > 0, leaf_sparsity=0.5 if sparse and leaf_width else 0.0,
        activation="relu",
    )  # fmt: skip
    x = torch.randint(-3, 4, (tokens, 8)).float()
    with torch.no_grad():
        expected = reference.inference(x, layer.fff_bias, layer.weights, Scales(), "relu")
        found = walk(x, layer.fff_bias, layer.weights, Scales(), "relu")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_reads_stored_rows(dtype):
    layer = layer_of(0, depth=3, branch_outputs=True, leaf_width=2, activation="gelu")
    weights, scales = store_rows(layer.weights, dtype)
    x = torch.randn(40, 8)
    with torch.no_grad():
        expected = reference.inference(x, layer.fff_bias, weights, scales, "gelu")
        torch.testing.assert_close(walk(x, layer.fff_bias, weights, scales, "gelu"), expected)


def test_a_layer_can_compute_with_it():
    layer = layer_of(0, depth=2, trunk=2)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = layer(x)
        layer.inference = Inference("standard")
        torch.testing.assert_close(layer(x), expected)
