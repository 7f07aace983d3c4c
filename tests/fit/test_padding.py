"""Padding counts nowhere: what a padded batch gives against its sequences one by one."""

from __future__ import annotations

import warnings

import pytest
import torch
from zoo import ARCHITECTURES, HANDWRITTEN

from fffconvert.fit.calibrate import block_inputs
from fffconvert.fit.padding import mask_for, without_padding
from fffconvert.fit.stream import ActivationStream
from fffconvert.location import locate

BY_NAME = {case.name: case for case in [*ARCHITECTURES, *HANDWRITTEN]}
LENGTHS = (5, 9, 12)


def padded() -> tuple[dict, list[dict]]:
    """Three sequences in one batch, and each by itself."""
    ids = torch.randint(5, 60, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    alone = [
        {"input_ids": ids[i : i + 1, :n], "attention_mask": mask[i : i + 1, :n]}
        for i, n in enumerate(LENGTHS)
    ]
    return {"input_ids": ids * mask, "attention_mask": mask}, alone


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "albert", "xlnet"])
def test_blocks_are_given_the_tokens_of_unpadded_text(name: str):
    model = BY_NAME[name].build()
    sites = locate(model, BY_NAME[name].inputs())
    whole, alone = padded()
    stream = ActivationStream(model, sites, [whole])
    for site in sites:
        expected = torch.cat([block_inputs(model, site, [batch]) for batch in alone])
        (found,) = stream.inputs(site)
        for x in (found, block_inputs(model, site, [whole])):
            assert x.shape == expected.shape
            error = torch.cdist(x.double(), expected.double()).amin(1)  # the order is the model's own
            assert float(error.max()) < 1e-4


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_and_decoder_have_masks_of_their_own(name: str):
    model = BY_NAME[name].build()
    sites = locate(model, BY_NAME[name].inputs())
    whole, _ = padded()
    decoder = torch.tensor([3, 12, 7])
    whole["decoder_input_ids"] = whole["input_ids"].flip(1)
    whole["decoder_attention_mask"] = (torch.arange(12) < decoder[:, None]).long()
    rows = {len(block_inputs(model, site, [whole])) for site in sites if ".encoder" in f".{site.name}"}
    assert rows == {sum(LENGTHS)}
    rows = {len(block_inputs(model, site, [whole])) for site in sites if ".decoder" in f".{site.name}"}
    assert rows == {int(decoder.sum())}
    assert torch.equal(mask_for(model, "", whole), whole["decoder_attention_mask"].bool())


def test_a_mask_of_another_shape_is_said_and_one_of_whole_sequences_is_none():
    x = torch.arange(24.0).view(3, 4, 2)
    with pytest.warns(UserWarning, match=r"block a .*\[3, 4\].*\[3, 5\].*padding counts"):
        assert len(without_padding(x, torch.eye(3, 5).bool(), "block a")) == 12
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (x, x.transpose(0, 1), x.reshape(-1, 2)):
            assert sorted(without_padding(given, mask, "it").tolist()) == sorted(x[mask].tolist())
        assert without_padding(torch.ones(3, 2), mask, "it").shape == (3, 2)
        assert mask_for(torch.nn.Linear(1, 1), "", {"attention_mask": torch.ones(2, 3)}) is None
