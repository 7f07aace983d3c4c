"""A conversion that was stopped goes on with the layers it had fitted, and gives the same model."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from test_conversion import BY_NAME, batches
from transformers import BertConfig, BertModel

from fffconvert.conversion import convert_model, fit_blocks, prepare
from fffconvert.fit.fitted import Fitted
from fffconvert.options import ConvertOptions

OPTIONS = ConvertOptions(depth=1, leaf_width=2)


class Stopped(Exception):
    pass


def test_a_stopped_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = BY_NAME["bert"]
    whole = case.build()
    expected = fit_blocks(
        whole, prepare(whole, OPTIONS.replace(calibration=batches(case), example_inputs=case.inputs()))
    )
    saved: list[str] = []
    save = Fitted.save

    def stop(self: Fitted, name: str, *rest) -> None:
        save(self, name, *rest)
        saved.append(name)
        raise Stopped

    model = case.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = prepare(model, OPTIONS.replace(calibration=batches(case), example_inputs=case.inputs()))
    monkeypatch.setattr(Fitted, "save", stop)
    with pytest.raises(Stopped):
        fit_blocks(model, prepared, Fitted("one"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    monkeypatch.setattr(Fitted, "save", save)
    stored = Fitted("one")
    assert stored.load(saved[0], prepared.specs[saved[0]]) is not None
    found = fit_blocks(model, prepared, stored)
    assert [dataclasses.asdict(a) for a in found] == [dataclasses.asdict(b) for b in expected]
    states = model.state_dict(), whole.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    stored.clear()
    assert not stored.folder.exists()


def test_a_conversion_does_not_go_on_with_layers_of_other_weights_or_text(tmp_path: Path, monkeypatch):
    """Names stay the same; what they name changes between the stopped call and the next."""
    source, text = tmp_path / "source", tmp_path / "text.txt"

    def write(seed: int, words: int) -> None:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        BertModel(BertConfig(vocab_size=12, **sizes)).save_pretrained(source)
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]
        (source / "vocab.txt").write_text("\n".join(vocabulary))
        lines = (" ".join(random.Random(words + n).choices("abcdef", k=6 + n % 7)) for n in range(150))
        text.write_text("\n\n".join(lines))

    def convert(name: str) -> dict[str, torch.Tensor]:
        options = ConvertOptions(depth=1, tokens=2000, length=16, calibration=text, output=tmp_path / name)
        convert_model(str(source), options)
        return BertModel.from_pretrained(tmp_path / name).state_dict()

    save = Fitted.save

    def stop(self: Fitted, name: str, *rest) -> None:
        save(self, name, *rest)
        raise Stopped

    write(0, words=0)
    for number, now in enumerate([(1, 0), (1, 1000)]):
        monkeypatch.setattr(Fitted, "save", stop)
        with pytest.raises(Stopped):
            convert(f"out{number}")
        monkeypatch.setattr(Fitted, "save", save)
        write(*now)
        found, expected = convert(f"out{number}"), convert(f"fresh{number}")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_layers_of_another_recipe_are_forgotten(tmp_path: Path):
    case = BY_NAME["bert"]
    model = case.build()
    prepared = prepare(model, OPTIONS.replace(calibration=batches(case), example_inputs=case.inputs()))
    fit_blocks(model, prepared, Fitted("one"))
    name, spec = next(iter(prepared.specs.items()))
    assert Fitted("one").load(name, spec) is not None
    assert Fitted("other").load(name, spec) is None
