from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from fffconvert import surgery
from fffconvert.hub import mark_converted
from fffconvert.location import locate
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

BERT = BertConfig(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
)


def convert(model: nn.Module, depth: int = 2, example_inputs: Mapping | None = None) -> nn.Module:
    """Replace every block by a layer with random weights; a model of transformers has it in its config."""
    layers = {
        site: FFFLayer(
            FFFSpec(
                site.d_model,
                site.d_model,
                depth,
                trees=2,
                trunk=1,
                branch_outputs=True,
                feature_axis=site.placement.feature_axis,
            )
        )
        for site in locate(model, example_inputs)
    }
    surgery.replace(model, layers)
    if isinstance(model, PreTrainedModel):
        mark_converted(model, "somebody/original")
    return model.eval()


@pytest.fixture
def bert() -> PreTrainedModel:
    """A tiny masked language model, not converted."""
    return BertForMaskedLM(BERT).eval()


@pytest.fixture
def folder(bert: PreTrainedModel, tmp_path: Path) -> Path:
    """The same on disk."""
    bert.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture(scope="session")
def to_converted() -> Callable[[PreTrainedModel], PreTrainedModel]:
    return convert


@pytest.fixture
def converted(bert: PreTrainedModel, tmp_path: Path) -> Path:
    """A folder that a converted model was saved to."""
    convert(bert).save_pretrained(tmp_path / "converted")
    return tmp_path / "converted"
