"""Specifications of layers."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fffconvert.errors import FFFError
from fffconvert.planning import FFFSpec
from fffconvert.records import plain, read
from fffconvert.tree import FFFLayer


def test_numbers_of_the_published_layer():
    spec = FFFSpec(768, 768, depth=11)
    assert (spec.nodes, spec.active_width) == (4095, 12)
    assert spec.macs_per_token == 2 * 768 * 12
    assert FFFSpec(768, 768, depth=0, trees=3072).active_width == 3072


@pytest.mark.parametrize(("gated", "macs"), [(False, 8 * (5 + 3)), (True, 8 * (5 + 2 * 3))])
def test_of_a_skipped_neuron_the_activation_alone_counts(gated: bool, macs: int):
    spec = FFFSpec(5, 5, 0, leaf_width=8, leaf_sparsity=0.4, leaf_gated=gated)
    assert spec.macs_per_token == 2 * 5 + macs
    assert spec.active_width == 1 + -(-macs // (15 if gated else 10))


@pytest.mark.parametrize("share", [-0.1, 1.0, 3, True, "half"])
def test_a_sparsity_is_a_share(share):
    with pytest.raises(FFFError, match="expected a share from 0 to below 1"):
        FFFSpec(5, 5, 0, leaf_width=8, leaf_sparsity=share)


def test_sparsity_needs_leaves():
    with pytest.raises(FFFError, match="without leaf blocks"):
        FFFSpec(5, 5, 0, leaf_sparsity=0.5)


@given(
    depth=st.integers(0, 4),
    trees=st.integers(1, 3),
    trunk=st.integers(0, 3),
    leaf_width=st.integers(0, 3),
    branch_outputs=st.booleans(),
    leaf_gated=st.booleans(),
    sparse=st.booleans(),
)
def test_parameters_are_those_that_the_layer_holds(sparse, **options):
    sparsity = 0.3 if sparse and options["leaf_width"] else 0.0
    spec = FFFSpec(5, 7, leaf_sparsity=sparsity, **options)
    assert spec.parameters == sum(parameter.numel() for parameter in FFFLayer(spec).parameters())
    assert read(FFFSpec, plain(spec), "spec", "checkpoint") == spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": -1}, "depth is -1; expected an integer from 0 to 20"),
        ({"depth": 40}, "depth is 40"),
        ({"depth": 1.5}, "depth is 1.5"),
        ({"depth": True}, "depth is True"),
        ({"depth": 2, "trees": 0}, "trees is 0"),
        ({"depth": 2, "trunk": -3}, "trunk is -3"),
        ({"depth": 2, "branch_outputs": 1}, "branch_outputs is 1"),
        ({"depth": 2, "activation": "nope"}, "unknown activation 'nope'"),
        ({"depth": 2, "feature_axis": 0}, "feature_axis is 0"),
        ({}, "lacks depth"),
    ],
    ids=str,
)
def test_values_out_of_range_are_named(values: dict, message: str):
    with pytest.raises(FFFError, match=message):
        read(FFFSpec, {"d_in": 4, "d_out": 4} | values, "spec", "checkpoint")


def test_unknown_keys_warn():
    with pytest.warns(UserWarning, match="unknown keys of spec: colour"):
        spec = read(FFFSpec, {"d_in": 4, "d_out": 4, "depth": 2, "colour": "red"}, "spec", "checkpoint")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(FFFSpec, plain(spec), "spec", "checkpoint") == spec
