"""What earlier releases wrote is read, computes what it did, and can be saved again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

import fffconvert  # noqa: F401 (teaches transformers to read them)

RELEASES = Path(__file__).parent / "releases"
FOLDERS = sorted(path.parent for path in RELEASES.glob("*/*/config.json"))
EXACT, INT8 = 1e-5, 0.02
"""Relative error: in int8, processors differ in how they round and saturate."""


@torch.no_grad()
def outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).last_hidden_state


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_is_read_and_saved_again(folder: Path, tmp_path: Path):
    inputs = load_file(folder / "expected.safetensors")
    expected = inputs.pop("last_hidden_state")
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = outputs(model, inputs)
    deployed = model.config.quantization_config.deployment is not None
    assert (found - expected).norm() <= (INT8 if deployed else EXACT) * expected.norm()
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(AutoModel.from_pretrained(tmp_path), inputs), found)


def test_there_are_releases():
    assert FOLDERS
