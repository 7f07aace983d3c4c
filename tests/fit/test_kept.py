"""A conversion that was stopped goes on with the layers it had fitted, and gives the same model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_convert import BY_NAME, batches

from fffconvert.convert import fit_blocks, prepare
from fffconvert.fit.kept import KeptLayers
from fffconvert.recipe import Recipe

RECIPE = Recipe(depth=1, leaf_width=2)


class Stopped(Exception):
    pass


def test_a_stopped_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = BY_NAME["bert"]
    whole = case.build()
    expected = fit_blocks(whole, prepare(whole, RECIPE, batches(case), None, case.inputs()))
    saved: list[str] = []
    save = KeptLayers.save

    def stop(self: KeptLayers, name: str, *rest) -> None:
        save(self, name, *rest)
        saved.append(name)
        raise Stopped

    model = case.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = prepare(model, RECIPE, batches(case), None, case.inputs())
    monkeypatch.setattr(KeptLayers, "save", stop)
    with pytest.raises(Stopped):
        fit_blocks(model, prepared, KeptLayers(tmp_path / "kept", {"depth": 1}))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    monkeypatch.setattr(KeptLayers, "save", save)
    kept = KeptLayers(tmp_path / "kept", {"depth": 1})
    assert kept.load(saved[0], prepared.specs[saved[0]]) is not None
    found = fit_blocks(model, prepared, kept)
    assert [dataclasses.asdict(a) for a in found] == [dataclasses.asdict(b) for b in expected]
    states = model.state_dict(), whole.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    kept.clear()
    assert not (tmp_path / "kept").exists()


def test_layers_of_another_recipe_are_forgotten(tmp_path: Path):
    case = BY_NAME["bert"]
    model = case.build()
    prepared = prepare(model, RECIPE, batches(case), None, case.inputs())
    fit_blocks(model, prepared, KeptLayers(tmp_path / "kept", {"depth": 1}))
    name, spec = next(iter(prepared.specs.items()))
    assert KeptLayers(tmp_path / "kept", {"depth": 1}).load(name, spec) is not None
    assert KeptLayers(tmp_path / "kept", {"depth": 2}).load(name, spec) is None
