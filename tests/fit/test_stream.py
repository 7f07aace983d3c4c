"""The stream of activations against running the whole model for each block."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import ARCHITECTURES, HANDWRITTEN, Case

from fffconvert import surgery
from fffconvert.errors import FFFError
from fffconvert.fit import stream as module
from fffconvert.fit.calibrate import block_inputs
from fffconvert.fit.stream import ActivationStream
from fffconvert.location import locate

BY_NAME = {case.name: case for case in [*ARCHITECTURES, *HANDWRITTEN]}
CHAINS = ["bert", "llama", "gpt2", "vit", "functional-layer"]
OTHERS = ["bart", "albert"]


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


def batches(case: Case) -> list[dict]:
    first = case.inputs()
    other = {k: v.flip(-1) if v.is_floating_point() or k == "input_ids" else v for k, v in first.items()}
    return [first, other]


@pytest.mark.parametrize("name", CHAINS + OTHERS)
def test_blocks_are_given_what_the_whole_model_gives_them(name: str):
    case = BY_NAME[name]
    model = case.build()
    sites = locate(model, case.inputs())
    stream = ActivationStream(model, sites, batches(case))
    assert stream.one_pass is (name in CHAINS)
    for site in sites:
        expected = [block_inputs(model, site, [batch]) for batch in batches(case)]
        for found, wanted in zip(stream.inputs(site), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        surgery.replace(model, {site: Halved()})  # what later blocks are given depends on it


def test_a_layer_runs_once_to_its_block_and_once_to_its_end():
    case = BY_NAME["bert"]
    model = case.build()
    sites = locate(model, case.inputs())
    stream = ActivationStream(model, sites, batches(case))
    runs = []
    layer = model.get_submodule(sites[0].placement.entry[0].split(".intermediate")[0])
    layer.attention.register_forward_hook(lambda *_: runs.append(1))
    for site in sites:
        stream.inputs(site)
    assert len(runs) == 2 * len(batches(case))


def test_large_states_go_to_a_file(monkeypatch: pytest.MonkeyPatch):
    case = BY_NAME["bert"]
    model = case.build()
    sites = locate(model, case.inputs())
    expected = [ActivationStream(model, sites, batches(case)).inputs(site) for site in sites]
    monkeypatch.setattr(module, "MEMORY", 0)
    stream = ActivationStream(model, sites, batches(case))
    for site, wanted in zip(sites, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(stream.inputs(site), wanted, strict=True))


def test_a_block_out_of_turn_is_refused():
    case = BY_NAME["bert"]
    model = case.build()
    sites = locate(model, case.inputs())
    stream = ActivationStream(model, sites, batches(case))
    stream.inputs(sites[-1])
    with pytest.raises(FFFError, match="out of turn"):
        stream.inputs(sites[0])


def test_nan_is_named_with_the_block_and_the_cache_setting_stays():
    case = BY_NAME["llama"]
    model = case.build()
    sites = locate(model, case.inputs())
    before = model.config.use_cache
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.down_proj").weight[0, 0] = float("nan")
    stream = ActivationStream(model, sites, batches(case))
    stream.inputs(sites[0])
    with pytest.raises(FFFError, match=r"layers\.1.*not finite"):
        stream.inputs(sites[1])
    assert model.config.use_cache == before
