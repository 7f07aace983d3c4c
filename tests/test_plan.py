"""Specifications of layers, and the choice of blocks."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo import ARCHITECTURES, HANDWRITTEN

import fffconvert as fff
from fffconvert.bench.model import torch_models
from fffconvert.errors import FFFError
from fffconvert.locate import Sites, locate
from fffconvert.plan import FFFSpec, LayerForm, plan, select
from fffconvert.tree import FFFLayer

CASE = next(case for case in ARCHITECTURES if case.name == "bert")


@pytest.fixture(scope="module")
def located():
    model = CASE.build()
    return locate(model, CASE.inputs()), [name for name, _ in model.named_modules()]


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
    assert FFFSpec.from_dict(spec.to_dict()) == spec


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
        FFFSpec.from_dict({"d_in": 4, "d_out": 4} | values)


def test_unknown_keys_warn():
    with pytest.warns(UserWarning, match="unknown keys of an FFF layer: colour"):
        spec = FFFSpec.from_dict({"d_in": 4, "d_out": 4, "depth": 2, "colour": "red"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FFFSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("include", "exclude", "layers"),
    [
        ([], [], [0, 1]),
        (["*layer.0*"], [], [0]),
        (["layer.1"], [], [1]),
        (["bert.encoder.layer.1.intermediate.dense"], [], [1]),
        (["intermediate"], ["layer.0"], [1]),
        ([], ["*.1.*"], [0]),
    ],
)
def test_patterns_choose_blocks(located, include: list[str], exclude: list[str], layers: list[int]):
    sites, names = located
    assert [site.layer for site in select(sites, names, include, exclude)] == layers


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["nowhere"], [], "--include 'nowhere' matches nothing; blocks are named like"),
        (["attention"], [], "matches modules, but none that is a feedforward block"),
        ([], ["nowhere"], "--exclude 'nowhere' matches nothing"),
        ([], ["layer.*"], "--exclude leaves none of the 2 blocks"),
    ],
    ids=["nothing", "no block", "exclude nothing", "exclude everything"],
)
def test_each_way_to_match_nothing_has_its_message(located, include, exclude, message: str):
    with pytest.raises(FFFError, match=message):
        select(*located, include, exclude)


def test_a_model_without_blocks_is_refused(located):
    with pytest.raises(FFFError, match="no feedforward block that can be converted"):
        select(Sites([]), located[1], [], [])


@pytest.mark.parametrize("form", LayerForm)
def test_plan_takes_widths_and_activation_from_the_block(located, form: LayerForm):
    specs = plan(located[0], depth=3, trees=2, trunk=1, form=form)
    assert set(specs) == {site.name for site in located[0]}
    expected = FFFSpec(24, 24, 3, 2, 1, branch_outputs=form is LayerForm.BRANCH, activation="gelu")
    assert set(specs.values()) == {expected}


def test_an_activation_that_layers_lack_is_refused_with_the_block():
    case = next(case for case in HANDWRITTEN if case.name == "custom-activation")
    sites = locate(case.build(), case.inputs())
    message = rf"block {sites[0].name} has an activation that FFF layers lack \(custom\); .*--exclude"
    with pytest.raises(FFFError, match=message):
        plan(sites, depth=2, form=LayerForm.PAPER)
    with pytest.raises(FFFError, match=message):
        fff.convert(case.build(), depth=2, calibration=[case.inputs()] * 2, example_inputs=case.inputs())
    with pytest.raises(FFFError, match=message):
        fff.estimate(case.build(), depth=2, example_inputs=case.inputs())
    settings = {"depth": 1, "trees": 1, "model": "a model", "original": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_models, "dense", lambda _: case.build())
        patch.setattr(torch_models, "locate", lambda model: locate(model, case.inputs()))
        with pytest.raises(FFFError, match=message):
            torch_models.trees(settings)
