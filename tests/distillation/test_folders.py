"""What a run goes on with, and what it learns from: by content and revision, not by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fffconvert as fff
from fffconvert import hub, store
from fffconvert.distillation import Recipe, distill_folder
from fffconvert.distillation.trainer import DistillTrainer
from fffconvert.errors import FFFError
from fffconvert.options import DistillOptions
from fffconvert.records import read

GOALS = {"embedding_cosine": 1.0}


def recipe_of(text: Path, goals: dict[str, Any]) -> Recipe:
    stages = [{"steps": 2, "batch_size": 8, "learning_rate": 2e-3, "objectives": goals}]
    data = {"train": [str(text)], "held_out": 0.1, "length": 16}
    return read(Recipe, {"stages": stages, "data": data, "log_steps": 1})


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "training.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def encoder(converted: Callable[[str], Path]) -> Path:
    return converted("encoder")


def other_weights(folder: Path, place: Path) -> Path:
    """A copy of a model with other weights."""
    loaded = hub.load(str(folder))
    torch.manual_seed(7)
    for parameter in loaded.model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    loaded.model.save_pretrained(place)
    loaded.tokenizer.save_pretrained(place)
    return place


def test_a_cache_is_of_the_teachers_weights_not_of_its_name(
    converted: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, teacher = converted("masked"), tmp_path / "teacher"
    shutil.copytree(source.parent / "original", teacher)
    cached = replace(recipe_of(text, {"logits": 1.0}), cache=True)
    distill_folder(source, DistillOptions(recipe=cached, output=tmp_path / "one", teacher=str(teacher)))
    other_weights(source.parent / "original", teacher)
    distill_folder(source, DistillOptions(recipe=cached, output=tmp_path / "two", teacher=str(teacher)))
    stored = list(store.folder_of("teachers").iterdir())
    monkeypatch.setenv("FFFCONVERT_CACHE", str(tmp_path / "fresh"))
    distill_folder(source, DistillOptions(recipe=cached, output=tmp_path / "three", teacher=str(teacher)))
    assert losses(tmp_path / "two") == losses(tmp_path / "three") != losses(tmp_path / "one")
    assert len(stored) == 2


@pytest.mark.parametrize(
    ("teacher", "revision", "expected"),
    [(None, None, "v1"), (None, "v2", "v2"), ("given", None, None), ("given", "v3", "v3")],
)
def test_the_teacher_is_of_the_revision_asked_for(
    encoder: Path, text: Path, tmp_path: Path, monkeypatch, teacher, revision, expected
):
    """Without other wishes, that of the model which was converted."""
    source = tmp_path / "source"
    shutil.copytree(encoder, source)
    recipe = yaml.safe_load((source / "fffconvert.yaml").read_text())
    (source / "fffconvert.yaml").write_text(yaml.safe_dump({**recipe, "revision": "v1"}))
    read: dict[str, str | None] = {}

    class Read(Exception):
        pass

    def load(name: str, *, revision: str | None = None, **_: Any) -> Any:
        read[name] = revision
        if len(read) == 2:
            raise Read
        return None

    monkeypatch.setattr(hub, "load", load)
    with pytest.raises(Read):
        distill_folder(
            source,
            DistillOptions(
                recipe=recipe_of(text, GOALS), output=tmp_path / "out", teacher=teacher, revision=revision
            ),
        )
    assert read == {str(source): None, teacher or recipe["model"]: expected}


@pytest.mark.parametrize("changed", ["weights", "text"])
def test_a_run_does_not_go_on_with_other_weights_or_text_of_the_same_name(
    encoder: Path, text: Path, tmp_path: Path, monkeypatch, changed: str
):
    own, source = tmp_path / "text.txt", tmp_path / "source"
    shutil.copy(text, own)
    shutil.copytree(encoder, source)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillTrainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        distill_folder(source, DistillOptions(recipe=recipe_of(own, GOALS), output=tmp_path / "out"))
    monkeypatch.undo()
    if changed == "text":
        own.write_text(own.read_text() + "\n\nba be bi bo bu")
    else:
        other_weights(encoder, source)
    with pytest.raises(FFFError, match=r"another run \(its recipe, weights or text differ\).*`restart=True`"):
        distill_folder(source, DistillOptions(recipe=recipe_of(own, GOALS), output=tmp_path / "out"))


def test_from_python_a_folder_is_of_one_run(encoder: Path, text: Path, tmp_path: Path):
    texts, recipe = text.read_text().splitlines(), recipe_of(Path("unused"), GOALS)

    def run(texts: list[str], seed: int = 0) -> torch.Tensor:
        loaded, teacher = hub.load(str(encoder)), hub.load(str(encoder.parent / "original")).model
        options = {"tokenizer": loaded.tokenizer, "folder": tmp_path / "run"}
        model = fff.distill(loaded.model, teacher, texts, replace(recipe, seed=seed), **options)
        return model.encoder.layer[0].intermediate.dense.layer.fff_bias

    assert torch.equal(run(texts), run(texts))  # the second takes over what the first has written
    for other in ({"texts": texts[:-3]}, {"texts": texts, "seed": 1}):
        with pytest.raises(FFFError, match="holds checkpoints of another run"):
            run(**other)


def test_one_process_for_several_gpus_is_refused_before_anything_is_done(
    encoder: Path, text: Path, tmp_path: Path, monkeypatch
):
    """`nn.DataParallel` would split the three counts of a step among the GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FFFError, match=r"found 2 GPUs and one process.*torchrun.*CUDA_VISIBLE_DEVICES=0"):
        distill_folder(encoder, DistillOptions(recipe=recipe_of(text, GOALS), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
