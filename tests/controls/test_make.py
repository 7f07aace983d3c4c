"""Controls made from the folder of a conversion: each block's own layer, and what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer

import fffconvert as fff
from fffconvert.controls import Control, make_control
from fffconvert.conversion import convert_model
from fffconvert.errors import FFFError
from fffconvert.options import ConvertOptions
from fffconvert.surgery import layers_of


@pytest.fixture(scope="module")
def twelve_blocks(tmp_path_factory):
    """The folder of a converted model of twelve blocks, as many that their names sort in another order."""
    folder = tmp_path_factory.mktemp("twelve")
    words = [a + b for a in "bdfgkl" for b in "aeiou"]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    (folder / "text.txt").write_text("\n\n".join(" ".join(words[n % 7 :]) for n in range(60)))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=8, intermediate_size=16, num_hidden_layers=12, num_attention_heads=2
    )
    BertForMaskedLM(config).save_pretrained(folder / "original")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "original")
    options = ConvertOptions(
        depth=1,
        tokens=600,
        length=16,
        sequential=False,
        output=folder / "converted",
        calibration=folder / "text.txt",
    )
    convert_model(str(folder / "original"), options)
    return folder


def test_each_control_of_twelve_blocks_is_of_its_own_layer(twelve_blocks):
    converted = layers_of(BertForMaskedLM.from_pretrained(twelve_blocks / "converted"))
    control = layers_of(make_control(twelve_blocks / "converted", Control.RANDOM_ROUTING).model)
    expected = [f"bert.encoder.layer.{block}.intermediate.dense" for block in range(12)]
    assert list(converted) == list(control) == expected
    rows = {name: placed.layer.fff_leaf_constant for name, placed in converted.items()}
    for name, placed in control.items():
        assert placed.placement == converted[name].placement
        same = [other for other, row in rows.items() if torch.equal(row, placed.layer.fff_leaf_constant)]
        assert same == [name]


def test_the_control_of_a_model_without_the_head_of_its_original(twelve_blocks, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(twelve_blocks / "converted", bare)
    BertModel.from_pretrained(twelve_blocks / "converted").save_pretrained(bare)
    found = layers_of(make_control(bare, Control.RANDOM_ROUTING).model)
    expected = layers_of(make_control(twelve_blocks / "converted", Control.RANDOM_ROUTING).model)
    assert list(found) == list(expected)
    for name, placed in found.items():
        assert torch.equal(placed.layer.fff_leaf_constant, expected[name].layer.fff_leaf_constant)


def test_a_conversion_that_lacks_a_block_of_its_recipe_is_refused(twelve_blocks, tmp_path):
    folder = tmp_path / "fewer"
    shutil.copytree(twelve_blocks / "converted", folder)
    model = BertForMaskedLM.from_pretrained(twelve_blocks / "original")
    recipe = yaml.safe_load((folder / "fffconvert.yaml").read_text())
    batch = {"input_ids": torch.randint(5, 35, (64, 12))}
    fff.convert(model, depth=1, exclude=("3",), calibration=[batch] * 2, sequential=False)
    model.save_pretrained(folder)
    assert recipe["exclude"] == []
    with pytest.raises(FFFError, match=r"no layer in the place of block bert\.encoder\.layer\.3\."):
        make_control(folder, Control.ABLATED)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FFFError, match="is no conversion"):
        make_control(tmp_path, Control.DENSE)
    (tmp_path / "fffconvert.yaml").write_text("a: 1")
    with pytest.raises(FFFError, match="names no model"):
        make_control(tmp_path, Control.DENSE)
