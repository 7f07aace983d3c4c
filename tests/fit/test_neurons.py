"""Neurons taken from located blocks: the same hidden layer as the block's own, whatever it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from zoo import ARCHITECTURES, HANDWRITTEN

from fffconvert.errors import FFFError
from fffconvert.fit.neurons import neurons_of
from fffconvert.location import locate

BY_NAME = {case.name: case for case in [*ARCHITECTURES, *HANDWRITTEN]}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "phi3", "glm", "t5", "conv1x1-1d", "albert"])
def test_they_compute_the_block_s_hidden_layer(name: str):
    if name not in BY_NAME:
        pytest.skip(f"the zoo has no {name}")
    case = BY_NAME[name]
    for site in locate(case.build(), case.inputs()):
        neurons = neurons_of(site)
        assert len(neurons) == site.d_hidden
        assert neurons.gated is site.gated
        block = site.dense()
        x = torch.randn(50, site.d_model, generator=torch.Generator().manual_seed(5))
        expected = block.hidden(*[up(x) for up in block.dense_up])
        torch.testing.assert_close(neurons(x), expected.detach(), rtol=1e-4, atol=1e-4)


def test_an_activation_of_the_model_s_own_is_refused():
    case = BY_NAME["bert"]
    site = locate(case.build(), case.inputs())[0]
    for activation in ("custom", "relu"):
        with pytest.raises(FFFError, match=r"layer\.0.*leaf width 0"):
            neurons_of(replace(site, activation=activation))
