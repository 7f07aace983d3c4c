"""Ablated blocks: the mean output, whatever comes."""

from __future__ import annotations

import torch
from test_conversion import BY_NAME

from fffconvert.controls import Control, ablate_blocks, frozen_parameters
from fffconvert.controls.make import control_layer
from fffconvert.conversion import prepare
from fffconvert.options import ConvertOptions


def test_deleted_gives_the_mean_whatever_comes(site_and_layer):
    site, layer, x, _ = site_and_layer
    with torch.no_grad():
        made = control_layer(site, layer, Control.ABLATED, x)
        assert torch.equal(made(x), made.fff_bias.expand_as(x))
    trained = [
        n for n, _ in made.named_parameters() if n not in frozen_parameters(Control.ABLATED, made.spec)
    ]
    assert trained == ["fff_bias"]


def test_deleted_blocks_give_their_mean_output():
    case = BY_NAME["bert"]
    model = case.build()
    inputs = [case.inputs(), case.inputs()]
    prepared = prepare(model, ConvertOptions(depth=1, calibration=inputs, example_inputs=case.inputs()))
    ablate_blocks(model, prepared.sites, inputs)
    for site in prepared.sites:
        replaced = model.get_submodule(site.placement.entry[0])
        x = torch.randn(3, 2, site.d_model)
        assert torch.equal(replaced(x), replaced(2 * x + 1))
