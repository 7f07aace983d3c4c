"""What blocks are given and make of it, against a run of the whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import ARCHITECTURES

import fffconvert as fff

CASE = next(case for case in ARCHITECTURES if case.name == "bert")


def options() -> dict:
    torch.manual_seed(0)
    inputs = CASE.inputs()
    shuffled = [inputs["input_ids"][:, torch.randperm(inputs["input_ids"].shape[1])] for _ in range(4)]
    return {"calibration": [{**inputs, "input_ids": ids} for ids in shuffled], "example_inputs": inputs}


def given(model: nn.Module, name: str, batch: dict) -> torch.Tensor:
    taken = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return taken[0].flatten(0, 1)


def test_inputs_are_those_of_the_model_and_outputs_those_of_the_block():
    model, chosen = CASE.build().eval(), options()
    for site, held_out, fitted in fff.activations(model, **chosen):
        parts = [given(model, site.placement.entry[0], batch) for batch in chosen["calibration"]]
        torch.testing.assert_close(held_out[0], parts[0])
        torch.testing.assert_close(fitted[0], torch.cat(parts[1:]))
        with torch.no_grad():
            torch.testing.assert_close(fitted[1], site.dense()(fitted[0]))


def test_what_is_replaced_meanwhile_counts():
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    before = [found.fitted[0] for found in fff.activations(CASE.build().eval(), **options())]
    model, after = CASE.build().eval(), []
    for found in fff.activations(model, **options()):
        after.append(found.fitted[0])
        fff.replace(model, {found.site: Nothing()})
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_what_is_wrong_is_said_before_the_first_block():
    with pytest.raises(fff.FFFError, match="matches nothing"):
        fff.activations(CASE.build(), **options(), include=("nowhere",))
