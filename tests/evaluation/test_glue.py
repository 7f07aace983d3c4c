"""Fine-tuning: heads on converted bodies, learning, seeds, data that is not as it should be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fffconvert as fff
from fffconvert.errors import FFFError
from fffconvert.evaluation import glue
from fffconvert.evaluation.glue import GLUE, fine_tune, with_head
from fffconvert.tree import FFFLayer

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(count: int) -> list[dict[str, Any]]:
    rng = random.Random(count)
    return [
        {
            "sentence": " ".join(rng.choices(("ba", "bo") if n % 2 else ("lu", "li"), k=rng.randint(2, 9))),
            "label": n % 2,
        }
        for n in range(count)
    ]


def test_a_head_stands_on_the_converted_body(build: Any):
    model = build("masked")
    inputs = {"input_ids": torch.randint(5, 35, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    fff.convert(model, depth=2, calibration=[inputs] * 4, tokens=256)
    found = with_head(model, 3, seed=0, pad=0)
    layers = [module for module in found.modules() if isinstance(module, FFFLayer)]
    assert len(layers) == 2
    assert found(**inputs).logits.shape == (2, 3)
    with torch.no_grad():
        hidden = found.bert(**inputs)[0]
        torch.testing.assert_close(hidden, model.bert(**inputs)[0])
    with torch.no_grad():
        layers[0].fff_bias += 1
    with torch.no_grad():
        assert not torch.allclose(found.bert(**inputs)[0], model.bert(**inputs)[0])


def test_models_without_a_form_for_it_are_refused():
    with pytest.raises(FFFError, match="Linear has no form with a classification head"):
        with_head(nn.Linear(2, 2), 2, 0, 0)


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_it_learns_and_repeats(kind: str, build: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(glue, "LEARNING_RATE", 3e-3)
    model, train, dev = build(kind), rows(96), rows(20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runs = [fine_tune(model, tokenizer, GLUE["sst-2"], train, dev, epochs=8, seed=seed) for seed in (0, 0)]
    assert np.array_equal(*runs)
    assert runs[0][:, 0].tolist() == [n % 2 for n in range(20)]
    assert (runs[0][:, 0] == runs[0][:, 1]).mean() >= 0.9
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_regression_answers_numbers(build: Any, tokenizer: Any, sentences: Any):
    texts = sentences(40)
    pairs = [{"sentence1": texts[n], "sentence2": texts[-n - 1], "label": n / 8} for n in range(40)]
    units = fine_tune(
        build("encoder"), tokenizer, GLUE["glue-sts-b"], pairs[:32], pairs[32:], epochs=1, seed=0
    )
    assert units.shape == (8, 2)
    assert len(set(units[:, 1])) > 2


def test_seeds_and_their_median(save: Callable[..., Path], tmp_path: Path):
    for name, count in (("train", 40), ("dev", 15)):
        pairs = [{"sentence1": row["sentence"], "sentence2": "ba", **row} for row in rows(count)]
        write_rows(tmp_path / f"rte/{name}.jsonl", pairs)
    results = fff.evaluate(save("encoder"), ["rte"], data_dir=tmp_path, seeds=3, epochs=1)
    row = results["tasks"]["rte"]
    assert len(row["seeds"]) == 3
    assert row["value"] == sorted(row["seeds"])[1]
    assert (row["n"], row["train_rows"], row["epochs"]) == (15, 40, 1)
    assert row["source"] == "rte/dev.jsonl"
    write_rows(tmp_path / "rte/dev.jsonl", [{"sentence1": "ba", "sentence2": "bo", "label": 2}])
    with pytest.raises(FFFError, match="row 1: label is 2; expected 0 to 1"):
        fff.evaluate(save("encoder"), ["rte"], data_dir=tmp_path)
