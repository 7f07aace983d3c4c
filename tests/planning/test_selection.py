"""The choice of blocks, and a specification for each."""

from __future__ import annotations

import pytest
from zoo import ARCHITECTURES, HANDWRITTEN

import fffconvert as fff
from fffconvert.benchmarks.model import torch_models
from fffconvert.errors import FFFError
from fffconvert.location import Sites, locate
from fffconvert.options import ConvertOptions
from fffconvert.planning import FFFSpec, LayerForm
from fffconvert.planning.selection import select, specs_for

CASE = next(case for case in ARCHITECTURES if case.name == "bert")


@pytest.fixture(scope="module")
def located():
    model = CASE.build()
    return locate(model, CASE.inputs()), [name for name, _ in model.named_modules()]


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
        (["nowhere"], [], "`include` 'nowhere' matches nothing; blocks are named like"),
        (["attention"], [], "matches modules, but none that is a feedforward block"),
        ([], ["nowhere"], "`exclude` 'nowhere' matches nothing"),
        ([], ["layer.*"], "`exclude` leaves none of the 2 blocks"),
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
    specs = specs_for(located[0], ConvertOptions(depth=3, trees=2, trunk=1, layer=form))
    assert set(specs) == {site.name for site in located[0]}
    expected = FFFSpec(24, 24, 3, 2, 1, branch_outputs=form is LayerForm.BRANCH, activation="gelu")
    assert set(specs.values()) == {expected}


def test_an_activation_that_layers_lack_is_refused_with_the_block():
    case = next(case for case in HANDWRITTEN if case.name == "custom-activation")
    sites = locate(case.build(), case.inputs())
    message = rf"block {sites[0].name} has an activation that FFF layers lack \(custom\); .*`exclude`"
    with pytest.raises(FFFError, match=message):
        specs_for(sites, ConvertOptions(depth=2, layer=LayerForm.PAPER))
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
