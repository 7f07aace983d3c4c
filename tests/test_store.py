"""What is kept between runs: a name changes with whatever the result depends on, and with nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

import fffconvert as fff
from fffconvert import store
from fffconvert.hub.deployment import put_int8
from fffconvert.runtime import Inference
from fffconvert.store import digest, fingerprint, written
from fffconvert.surgery import layers_of


@pytest.fixture(scope="module")
def model() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = BertModel(BertConfig(vocab_size=40, **sizes)).eval()
    batch = {"input_ids": torch.randint(0, 40, (4, 32))}
    return fff.convert(made, depth=1, calibration=[batch] * 4, example_inputs=batch)


def first(model: BertModel):
    return next(iter(layers_of(model).values())).layer


CHANGES = {
    "a weight": lambda m: m.pooler.dense.weight.data[0, 0].add_(1e-3),
    "a weight of a tree": lambda m: first(m).fff_in_weight.data[0, 0, 0].add_(1e-3),
    "the dtype": lambda m: m.to(torch.bfloat16),
    "the row type": lambda m: setattr(first(m), "inference", Inference(dtype=torch.int8)),
    "the backend": lambda m: setattr(first(m), "inference", Inference("reference")),
    "a dense block": lambda m: setattr(
        first(m), "inference", Inference("dense", dense=torch.nn.Linear(16, 16))
    ),
    "int8 linear maps": lambda m: put_int8(m, "pooler.dense"),
    "the activation": lambda m: setattr(m.pooler, "activation", torch.nn.ReLU()),
    "how it attends": lambda m: m.set_attn_implementation("eager"),
    "the config": lambda m: setattr(m.config, "layer_norm_eps", 1e-3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_models_name_changes_with_what_it_computes(model: BertModel, change):
    made = copy.deepcopy(model)
    assert fingerprint(made) == fingerprint(model)
    change(made)
    assert fingerprint(made) != fingerprint(model)


def test_where_a_model_came_from_is_no_part_of_its_name(model: BertModel, tmp_path: Path):
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
    one, other = (BertModel.from_pretrained(tmp_path / name) for name in ("a", "b"))
    assert fingerprint(one) == fingerprint(other)


def test_a_tokenizers_name_changes_with_what_it_makes_of_text(tmp_path: Path):
    def build(*words: str) -> BertTokenizer:
        path = tmp_path / "vocab.txt"
        path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        return BertTokenizer(str(path))

    one = build("one", "two")
    name = fingerprint(one)
    one(["one", "one two"], padding=True, truncation=True, max_length=3)
    assert fingerprint(one) == name == fingerprint(build("one", "two"))
    assert fingerprint(build("two", "one")) != name  # as many tokens, in another order
    one.padding_side = "left"
    assert fingerprint(one) != name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (np.zeros(2), np.zeros(2, np.float32)),
        ({"a": 1}, {"a": 2}),
        ([torch.ones(1), {"x": torch.ones(1)}], [torch.ones(1), {"x": torch.zeros(1)}]),
        ("1", 1),
    ],
)
def test_other_values_have_other_names(one, other):
    assert fingerprint(one) == fingerprint(copy.deepcopy(one)) != fingerprint(other)


def test_a_file_counts_by_its_content_not_by_its_name(tmp_path: Path):
    one, other, third = (tmp_path / name for name in ("a", "b", "c"))
    one.write_text("same")
    other.write_text("same")
    third.write_text("else")
    assert fingerprint(one) == fingerprint(other) != fingerprint(third)
    before = fingerprint(tmp_path)
    third.write_text("more")
    assert fingerprint(tmp_path) != before


def test_what_has_no_known_content_has_no_name():
    with pytest.raises(TypeError, match="function has no fingerprint"):
        fingerprint(lambda: None)


def test_a_result_depends_on_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    names = digest("x"), digest("y")
    assert names == (digest("x"), digest("y"))
    assert len({*names, fingerprint("x")}) == 3
    (tmp_path / "module.py").write_text("changed")
    monkeypatch.setattr(store, "__file__", str(tmp_path / "store.py"))
    assert store.code.__wrapped__() != store.code()


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_what_fails_leaves_nothing(tmp_path: Path, folder: bool):
    def write(place: Path, text: str) -> None:
        (place.mkdir() or place / "inner" if folder else place).write_text(text)

    def fail() -> None:
        with written(tmp_path / "x") as partial:
            write(partial, "half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with written(tmp_path / "x") as partial:
            write(partial, text)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    kept = tmp_path / "x" / "inner" if folder else tmp_path / "x"
    assert kept.read_text() == ("one" if folder else "two")  # a folder of the same name says the same
