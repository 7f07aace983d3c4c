from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import fffconvert as fff


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A folder with a converted masked language model: trees with leaf blocks and a trunk."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.BertForMaskedLM(config).eval()
    batch = {"input_ids": torch.randint(0, 90, (8, 32))}
    options = {"depth": 2, "trunk": 4, "leaf_width": 3}
    fff.convert(model, calibration=[batch] * 4, example_inputs=batch, **options)
    path = tmp_path_factory.mktemp("deploy") / "fff"
    model.save_pretrained(path)
    return path
