"""Robustness, ablation and routing of converted models, as `eval` gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fffconvert as fff
from fffconvert.cli import app
from fffconvert.errors import FFFError
from fffconvert.evaluation.robustness import overlap, with_typos
from fffconvert.evaluation.routing import entropy, path_agreement, statistics, words
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer


@pytest.fixture
def convert(build: Any) -> Callable[..., Any]:
    """A tiny converted model."""

    def make(kind: str, seed: int = 0) -> Any:
        model = build(kind)
        ids = torch.randint(5, 35, (40, 9), generator=torch.Generator().manual_seed(seed))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return fff.convert(model, depth=2, leaf_width=2, calibration=[inputs] * 3, tokens=256)

    return make


@pytest.fixture
def options(tokenizer: Any, data: Path, tmp_path: Path) -> dict[str, Any]:
    return {"tokenizer": tokenizer, "data_dir": data, "limit": 12}


@pytest.mark.parametrize(
    ("kind", "task"), [("encoder", "sts-b"), ("masked", "mlm"), ("causal", "perplexity")]
)
def test_ablation(kind: str, task: str, convert: Any, options: dict[str, Any]):
    model = convert(kind)
    found = fff.evaluate(model, ["ablation", task], **options)
    part = found["ablation"]
    assert (part["task"], part["limit"]) == (task, 12)
    assert [row["name"] for row in part["rows"]] == [
        "hard",
        "all-nodes",
        "random",
        "shuffled",
        "depth-0",
        "depth-1",
        "depth-2",
    ]
    assert part["rows"][0]["value"] == pytest.approx(found["tasks"][task]["value"], rel=1e-5)
    assert part["rows"][0]["cost"] == 0
    assert len({row["value"] for row in part["rows"]}) > 4
    assert fff.evaluate(model, ["ablation"], **options)["ablation"] == part


def test_a_model_without_trees_is_refused(build: Any, options: dict[str, Any]):
    for task in ("ablation", "routing"):
        with pytest.raises(FFFError, match=f"task {task} looks at routing, and BertModel has no FFF layers"):
            fff.evaluate(build("encoder"), [task], **options)


def test_routing(convert: Any, options: dict[str, Any]):
    model = convert("encoder")
    part = fff.evaluate(
        model, ["routing"], controls={"same": model, "other": convert("encoder", 1)}, **options
    )
    part = part["routing"]
    assert len(part["layers"]) == 2
    for row in part["layers"]:
        assert sum(row["leaf_share"]) == pytest.approx(1, abs=1e-4)
        assert len(row["leaf_share"]) == 8
        assert [level["nodes"] for level in row["levels"]] == [1, 2, 4]
        assert 0 <= row["dead_share"] < 1
    assert part["agreement"]["same"]["same_leaf"] == 1
    assert part["agreement"]["other"]["same_leaf"] < 1
    assert {row["layer"] for row in part["leaves"]} == {row["name"] for row in part["layers"]}
    assert all(
        word in options["tokenizer"].get_vocab() for row in part["leaves"] for word, _ in row["tokens"]
    )


def test_statistics_of_a_tree():
    row = statistics("x", 0, torch.tensor([0, 0, 1, 3]), 1)
    assert row.leaf_share == (0.5, 0.25, 0, 0.25)
    assert [level.visited for level in row.levels] == [1, 2]
    assert row.dead_share == 0
    assert row.entropy == pytest.approx(1.5 / 2)
    assert row.levels[1].entropy == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert statistics("x", 0, torch.tensor([0, 0]), 1).dead_share == pytest.approx(1 / 3)
    assert entropy(torch.tensor([5, 5, 5, 5])) == pytest.approx(1)
    assert entropy(torch.tensor([5])) == 1


def test_words_are_those_that_stand_out(tokenizer: Any):
    ba, be, bi = tokenizer.convert_tokens_to_ids(["ba", "be", "bi"])
    ids = torch.tensor([ba] * 6 + [be] * 6 + [bi] * 2)
    leaf = torch.tensor([0, 1] * 3 + [1] * 6 + [0] * 2)
    first, second = words("x", ids, leaf, tokenizer)
    assert (first.leaf, second.leaf) == (1, 0)
    assert first.tokens == (("be", 6), ("ba", 3))
    assert second.tokens == (("bi", 2), ("ba", 3))
    assert first.share == pytest.approx(9 / 14)


def test_agreement_of_paths():
    layer = FFFLayer(FFFSpec(2, 2, 1))
    own, other = torch.tensor([[0], [1], [2], [3]]), torch.tensor([[0], [0], [2], [0]])
    found = path_agreement({"x": own}, {"x": other}, {"x": layer})
    assert found.same_leaf == 0.5
    assert found.same_decisions == pytest.approx((1 + 0.5 + 1 + 0) / 4)


@pytest.mark.parametrize("kind", ["encoder", "masked", "causal"])
def test_robustness(kind: str, convert: Any, build: Any, options: dict[str, Any], data: Path):
    (data / "ood").mkdir()
    (data / "ood/legal_federalist.txt").write_text("ba be bi bo\n\nlu lo li\nko ku\n")
    (data / "ood/biomed_pubmedqa.jsonl").write_text(json.dumps({"context": "ba be\nbo bu bi"}) + "\n")
    translated = data / "ood/multilingual_sts/de.test.jsonl"
    translated.parent.mkdir()
    pair = {"sentence1": "ba be", "sentence2": "bo", "label": 1}
    translated.write_text(
        "\n".join(json.dumps({**pair, "sentence1": "ba " * n, "label": n}) for n in (1, 2, 3))
    )
    found = fff.evaluate(convert(kind), ["robustness"], teacher=build(kind), **options)["robustness"]
    rows = {row["name"]: row for row in found["rows"]}
    assert found["limit"] == 12
    assert {row["kind"] for row in rows.values()} >= {"domain", "typos", "case", "length"}
    assert {
        "in-domain",
        "typos-5%",
        "typos-20%",
        "lower-case",
        "upper-case",
        "short",
        "law",
        "biomedicine",
    } <= set(rows)
    assert rows["in-domain"]["routing_overlap"] == pytest.approx(1)
    assert rows["upper-case"]["routing_overlap"] == pytest.approx(1)  # the tokenizer has no capitals
    assert rows["law"]["routing_overlap"] < 1
    assert all(0 < row["neurons_used"] <= 1 for row in rows.values())
    share = rows["in-domain"]["value"] / rows["in-domain"]["teacher"]
    is_loss = rows["in-domain"]["metric"] in ("loss", "perplexity")
    assert rows["in-domain"]["retained"] == pytest.approx(1 / share if is_loss else share)
    assert ("de" in rows) == (kind == "encoder")
    if kind == "encoder":
        assert rows["de"]["kind"] == "language"
        assert rows["law"]["metric"] == "embedding_cosine"


def test_robustness_without_a_teacher_or_trees(build: Any, convert: Any, options: dict[str, Any], data: Path):
    (data / "ood").mkdir()
    (data / "ood/legal_federalist.txt").write_text("ba be bi bo\n\nlu lo li\nko ku\n")
    rows = fff.evaluate(convert("encoder"), ["robustness"], **options)["robustness"]["rows"]
    law = next(row for row in rows if row["name"] == "law")
    assert (law["metric"], law["value"], law["teacher"]) == (None, None, None)
    assert law["routing_overlap"] is not None
    rows = fff.evaluate(build("encoder"), ["robustness"], **options)["robustness"]["rows"]
    assert all(row["routing_overlap"] is None and row["neurons_used"] is None for row in rows)


def test_overlap_is_one_less_total_variation():
    first, other = {"x": [[3, 1, 0, 0]]}, {"x": [[0, 1, 1, 0]]}
    assert overlap(first, first) == 1
    assert overlap(first, other) == pytest.approx(0.25)
    assert overlap({}, {}) is None


def test_typos_are_inside_words_and_repeat():
    text = "some words of a longer sentence with an end " * 20
    changed = with_typos(text, 0.5)
    assert changed == with_typos(text, 0.5)
    assert with_typos(text, 0) == text
    pairs = list(zip(text.split(), changed.split(), strict=True))
    different = [pair for pair in pairs if pair[0] != pair[1]]
    assert 0.3 < len(different) / sum(len(word) > 3 for word, _ in pairs) < 0.6
    assert all(
        len(one) > 3 and abs(len(one) - len(other)) <= 1 and one[0] == other[0] for one, other in different
    )


def test_tables(save: Callable[..., Path], convert: Any, data: Path, tmp_path: Path, tokenizer: Any):
    folder = tmp_path / "converted"
    convert("encoder").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = [
        folder,
        "--data-dir",
        data,
        "--limit",
        "8",
        "--control",
        f"x={folder}",
    ]
    for task in ("robustness", "ablation", "routing"):
        arguments += ["--task", task]
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    for text in (
        "routing overlap",
        "all-nodes",
        "words of the most visited",
        "100.0% of the tokens reach",
        "quick look",
    ):
        assert text in result.stdout
