"""Controls: layers that are dense, deleted or randomly routed by construction."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer

import fffconvert as fff
from fffconvert.controls import Control, frozen_parameters, make_control, randomly_routed
from fffconvert.controls import _control_layer as control_layer
from fffconvert.convert import convert_model
from fffconvert.errors import FFFError
from fffconvert.fit import fit_layer
from fffconvert.fit.neurons import neurons_of
from fffconvert.locate import locate
from fffconvert.plan import FFFSpec
from fffconvert.recipe import Recipe
from fffconvert.surgery import layers_of


class Block(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.gate = nn.Linear(8, 32) if gated else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        hidden = nn.functional.silu(self.up(h))
        return x + self.down(hidden if self.gate is None else hidden * self.gate(h))


@pytest.fixture(params=[False, True], ids=["plain", "gated"])
def site_and_layer(request):
    torch.manual_seed(0)
    model = nn.Sequential(Block(request.param))
    site = locate(model, {"input": torch.randn(2, 5, 8)})[0]
    x = torch.randn(3000, 8)
    spec = FFFSpec(8, 8, 2, branch_outputs=True, leaf_width=3, leaf_gated=request.param, activation="silu")
    with torch.no_grad():
        y = site.dense()(x)
    return site, fit_layer(x, y, spec, neurons_of(site)), x, y


def test_dense_is_dense_of_the_active_width_and_better_than_nothing(site_and_layer):
    site, layer, x, y = site_and_layer
    with torch.no_grad():
        made = control_layer(site, layer, Control.DENSE, x)
        found = made(x)
    width = layer.spec.active_width
    used = width if not layer.spec.leaf_gated else made.spec.leaf_width
    assert used == width
    assert (found - y).square().mean() < 0.9 * (y - y.mean(0)).square().mean()
    # One formula for all tokens: a dense block of its parameters gives the same.
    act = nn.functional.silu
    if layer.spec.leaf_gated:
        up = x @ made.fff_leaf_in_weight[0, 0].T + made.fff_leaf_in_bias[0, 0]
        gate = x @ made.fff_leaf_gate_weight[0, 0].T + made.fff_leaf_gate_bias[0, 0]
        expected = (act(up) * gate) @ made.fff_leaf_out_weight[0, 0] + made.fff_bias
    else:
        hidden = act(x @ made.fff_in_weight[:, 0].T + made.fff_in_bias[:, 0])
        expected = hidden @ made.fff_out_weight[:, 0] + made.fff_bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_dense_stays_dense_in_training(site_and_layer):
    site, layer, x, y = site_and_layer
    with torch.no_grad():
        made = control_layer(site, layer, Control.DENSE, x)
    for name in frozen_parameters(Control.DENSE, made.spec):
        made.get_parameter(name).requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        (made(x) - y).square().mean().backward()
        optimiser.step()
    if layer.spec.leaf_gated:
        assert not made.fff_in_weight.any()
        assert not made.fff_leaf_in_weight[0, 1].any()


def test_deleted_gives_the_mean_whatever_comes(site_and_layer):
    site, layer, x, _ = site_and_layer
    with torch.no_grad():
        made = control_layer(site, layer, Control.DELETED, x)
        assert torch.equal(made(x), made.fff_bias.expand_as(x))
    trained = [
        n for n, _ in made.named_parameters() if n not in frozen_parameters(Control.DELETED, made.spec)
    ]
    assert trained == ["fff_bias"]


def test_random_routing_keeps_everything_but_the_hyperplanes_and_balances_them(site_and_layer):
    _, layer, x, _ = site_and_layer
    made = randomly_routed(layer, x)
    for (name, one), other in zip(layer.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(one, other) is (name not in ("fff_in_weight", "fff_in_bias"))
    torch.testing.assert_close(made.fff_in_weight.norm(dim=-1), layer.fff_in_weight.norm(dim=-1))
    _, _, leaf = torch.ops.fffconvert.cmm(x, *made.weights, made.spec.activation)
    counts = torch.bincount(leaf[:, 0], minlength=made.spec.leaves)
    assert counts.min() > 0.9 * len(x) / made.spec.leaves


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
    recipe = Recipe(depth=1, tokens=600, length=16, sequential=False)
    convert_model(
        str(folder / "original"), recipe, folder / "converted", calibration=[str(folder / "text.txt")]
    )
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
        make_control(folder, Control.DELETED)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FFFError, match="is no conversion"):
        make_control(tmp_path, Control.DENSE)
    (tmp_path / "fffconvert.yaml").write_text("a: 1")
    with pytest.raises(FFFError, match="names no model"):
        make_control(tmp_path, Control.DENSE)
