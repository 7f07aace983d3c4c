"""Runs: what they write, that they resume to the same bits, and how they end when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fffconvert as fff
from fffconvert import hub
from fffconvert.controls import Control
from fffconvert.distillation import Recipe, distill_folder
from fffconvert.errors import FFFError
from fffconvert.options import DistillOptions
from fffconvert.records import plain, read
from fffconvert.store import folder_of
from fffconvert.tree import FFFLayer

GOALS = {"hidden_states": 1.0, "embedding_cosine": 1.0, "embedding_similarity": 1.0}


def recipe_of(text: Path, goals: dict[str, Any], **stage: Any) -> Recipe:
    stages = [
        {"steps": 6, "batch_size": 8, "learning_rate": 2e-3, "eval_steps": 2, "objectives": goals, **stage}
    ]
    data = {"train": [str(text)], "held_out": 0.1, "length": 16}
    return read(Recipe, {"stages": stages, "data": data, "log_steps": 1})


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in journal(folder) if "loss" in line]


@pytest.fixture
def encoder(converted: Callable[[str], Path]) -> Path:
    return converted("encoder")


def test_a_run_brings_the_student_closer_and_writes_what_others_read(
    encoder: Path, text: Path, tmp_path: Path
):
    recipe = recipe_of(text, GOALS, steps=30, eval_steps=10)
    found = distill_folder(encoder, DistillOptions(recipe=recipe, output=tmp_path / "out"))
    lines = journal(tmp_path / "out")
    assert losses(tmp_path / "out")[-1] < 0.9 * losses(tmp_path / "out")[0]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 31))
    assert set(GOALS) == set(lines[0]["losses"])
    assert {"step", "tokens", "loss", "tokens_per_second", "learning_rate"} <= set(lines[0])
    evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert evaluated[-1] < evaluated[0]
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["training"]["tokens"] == lines[-1]["tokens"] == found.training.tokens
    assert metrics["training"]["steps"] == 30
    assert metrics["blocks"]
    again = yaml.safe_load((tmp_path / "out/fffconvert.yaml").read_text())
    assert read(Recipe, again["distill"]) == recipe
    assert "30 steps" in (tmp_path / "out/README.md").read_text()
    assert list((tmp_path / "out/tensorboard/stage-0").glob("events.out.tfevents.*"))
    assert not list(tmp_path.glob(".out*"))
    model = hub.load(str(tmp_path / "out")).model
    assert sum(isinstance(module, FFFLayer) for module in model.modules()) == 2
    # A distilled folder is a folder like another: it can be distilled again.
    distill_folder(
        tmp_path / "out", DistillOptions(recipe=recipe_of(text, GOALS, steps=1), output=tmp_path / "more")
    )


def test_only_what_is_to_be_trained_changes(encoder: Path, text: Path, tmp_path: Path):
    distill_folder(
        encoder,
        DistillOptions(recipe=recipe_of(text, GOALS, trained={"attention": False}), output=tmp_path / "out"),
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (encoder, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".fff_" in name or "LayerNorm" in name for name in changed)
    assert any(".fff_leaf_in_weight" in name for name in changed)
    assert "embeddings.LayerNorm.weight" in changed


@pytest.mark.parametrize("control", list(Control))
def test_controls_train_by_the_same_recipe(encoder: Path, text: Path, tmp_path: Path, control: Control):
    distill_folder(
        encoder,
        DistillOptions(recipe=recipe_of(text, GOALS, steps=3), output=tmp_path / "out", control=control),
    )
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["control"] == metrics["training"]["control"] == control.value
    assert yaml.safe_load((tmp_path / "out/fffconvert.yaml").read_text())["control"] == control.value
    model = hub.load(str(tmp_path / "out")).model
    layers = [module for module in model.modules() if isinstance(module, FFFLayer)]
    assert len(layers) == (0 if control is Control.ORIGINAL else 2)
    distill_folder(encoder, DistillOptions(recipe=recipe_of(text, GOALS, steps=3), output=tmp_path / "own"))
    assert journal(tmp_path / "own")[-1]["tokens"] == journal(tmp_path / "out")[-1]["tokens"]
    if control is Control.ABLATED:
        assert all(not layer.fff_out_weight.any() for layer in layers)


KILLED = """
import sys
from pathlib import Path
import torch
import fffconvert as fff
from fffconvert.distillation import read_recipe
torch.set_num_threads(1)  # as in this process: the same bits need the same order of sums
fff.distill(sys.argv[1], recipe=read_recipe(sys.argv[2]), output=sys.argv[3])
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(converted: Callable[[str], Path], text: Path, tmp_path: Path):
    source = converted("masked")
    stage = {"steps": 8, "eval_steps": 2, "dropout": True}
    recipe = recipe_of(text, {"logits": 1.0, "mlm": 1.0}, **stage)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain(recipe)), encoding="utf-8")
    distill_folder(source, DistillOptions(recipe=recipe, output=tmp_path / "whole"))
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(source),
        str(tmp_path / "recipe.yaml"),
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    work = tmp_path / ".out.training"
    deadline = time.monotonic() + 120
    while not list(work.glob("stage-0/checkpoint-*/complete")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    distill_folder(source, DistillOptions(recipe=recipe, output=tmp_path / "out"))
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert journal(tmp_path / "out")[-1]["tokens"] == journal(tmp_path / "whole")[-1]["tokens"]


def test_checkpoints_of_another_run_are_refused(encoder: Path, text: Path, tmp_path: Path, monkeypatch):
    from fffconvert.distillation.trainer import DistillTrainer

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillTrainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        distill_folder(encoder, DistillOptions(recipe=recipe_of(text, GOALS), output=tmp_path / "out"))
    monkeypatch.undo()
    other = DistillOptions(recipe=recipe_of(text, GOALS, steps=2), output=tmp_path / "out")
    with pytest.raises(FFFError, match=r"another run.*`restart=True`"):
        distill_folder(encoder, other)
    distill_folder(encoder, replace(other, restart=True))


SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "FFFLayer,BertLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
LAUNCHED = """
import sys
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
import fffconvert as fff
from fffconvert.distillation import read_recipe
from fffconvert.distillation.trainer import DistillTrainer
usual = DistillTrainer._save_checkpoint
def save(self, *args):
    sharded = [name for name, value in self.model.named_parameters() if isinstance(value, DTensor)]
    assert any(".fff_" in name for name in sharded) == (sys.argv[4] == "fsdp")
    usual(self, *args)
DistillTrainer._save_checkpoint = save
usual_start = PartialState.__init__
def start(self, *args, **options):
    usual_start(self, *args, **options)
    if sys.argv[4] == "fsdp":  # accelerate shards on accelerators alone; torch does on processors too
        self.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = start
fff.distill(sys.argv[1], recipe=read_recipe(sys.argv[2]), output=sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_as_one_with_twice_the_batch(way: str, encoder: Path, text: Path, tmp_path: Path):
    goals = {**GOALS, "block_outputs": 0.5, "attention": 0.5}
    recipe = recipe_of(text, goals)
    distill_folder(encoder, DistillOptions(recipe=recipe, output=tmp_path / "one"))
    halves = replace(recipe, stages=(replace(recipe.stages[0], batch_size=4),))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain(halves)), encoding="utf-8")
    (tmp_path / "run.py").write_text(LAUNCHED, encoding="utf-8")
    arguments = [str(encoder), str(tmp_path / "recipe.yaml"), str(tmp_path / "two"), way]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fff.__file__).parents[1])}
    done = subprocess.run(
        [*command, str(tmp_path / "run.py"), *arguments],
        env=environment | (SHARDED if way == "fsdp" else {}),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(two) == 6
    assert two == pytest.approx(one, abs=1e-4)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()


def test_accumulated_passes_train_as_one_batch(converted: Callable[[str], Path], text: Path, tmp_path: Path):
    # All sums but that over pairs of sentences add up over passes.
    recipe = recipe_of(text, {"hidden_states": 1.0, "mlm": 1.0, "embedding_cosine": 1.0})
    distill_folder(converted("masked"), DistillOptions(recipe=recipe, output=tmp_path / "one"))
    parts = replace(recipe, stages=(replace(recipe.stages[0], batch_size=2, accumulation=4),))
    distill_folder(converted("masked"), DistillOptions(recipe=parts, output=tmp_path / "parts"))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_a_loss_that_is_no_number_stops_with_step_rows_and_layer(encoder: Path, text: Path, tmp_path: Path):
    with pytest.raises(FFFError) as caught:
        distill_folder(
            encoder,
            DistillOptions(
                recipe=recipe_of(text, GOALS, learning_rate=1e30, clip=0.0, warmup=0.0),
                output=tmp_path / "out",
            ),
        )
    message = str(caught.value)
    assert "at step 2" in message
    assert "batch rows [" in message
    assert "layer" in message
    assert "learning_rate" in message


FULL = """
import resource, sys
import fffconvert as fff
from fffconvert.distillation import read_recipe, trainer
usual = trainer.DistillTrainer._save_checkpoint
def save(self, *args):
    if self.state.global_step > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))
    usual(self, *args)
trainer.DistillTrainer._save_checkpoint = save
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fff.distill(sys.argv[1], recipe=read_recipe(sys.argv[2]), output=sys.argv[3])
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(encoder: Path, text: Path, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain(recipe_of(text, GOALS))), encoding="utf-8")
    arguments = [str(encoder), str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    assert "the last good one is" in done.stderr
    kept = list((tmp_path / ".out.training/stage-0").glob("checkpoint-*"))
    assert [path.name for path in kept] == ["checkpoint-2"]
    distill_folder(encoder, DistillOptions(recipe=recipe_of(text, GOALS), output=tmp_path / "out"))
    assert len(losses(tmp_path / "out")) == 6


def test_out_of_memory_names_the_knobs(encoder: Path, text: Path, tmp_path: Path, monkeypatch):
    from fffconvert.distillation.distiller import Distiller

    def exhaust(self: Any, *args: Any, **_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(Distiller, "forward", exhaust)
    with pytest.raises(FFFError, match=r"batch_size 8.*accumulation"):
        distill_folder(encoder, DistillOptions(recipe=recipe_of(text, GOALS), output=tmp_path / "out"))


def test_it_stops_when_nothing_improves_and_goes_back_to_the_best(encoder: Path, text: Path, tmp_path: Path):
    recipe = recipe_of(
        text, GOALS, steps=40, learning_rate=3e-2, schedule="constant", patience=1, eval_steps=2
    )
    found = distill_folder(encoder, DistillOptions(recipe=recipe, output=tmp_path / "out"))
    evaluated = [line["eval_loss"] for line in journal(tmp_path / "out") if "eval_loss" in line]
    assert found.training.steps < 40
    assert found.training.eval_loss == min(evaluated) < evaluated[-1]


def test_stages_follow_one_another(encoder: Path, text: Path, tmp_path: Path):
    recipe = recipe_of(text, GOALS)
    blocks = replace(
        read(Recipe, {"stages": [{"kind": "blocks", "steps": 5, "learning_rate": 2e-3}]}).stages[0]
    )
    recipe = replace(recipe, stages=(blocks, recipe.stages[0]))
    found = distill_folder(encoder, DistillOptions(recipe=recipe, output=tmp_path / "out"))
    lines = journal(tmp_path / "out")
    assert found.training.steps == 11
    assert [line["stage"] for line in lines if "loss" in line] == ["blocks"] * 5 + ["end-to-end"] * 6
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 12))
    # On the same held-out text: the losses of single steps are of different batches.
    blockwise = [line["eval_loss"] for line in lines if line["stage"] == "blocks" and "eval_loss" in line]
    assert len(blockwise) == 5
    assert blockwise == sorted(blockwise, reverse=True)


def test_a_cached_teacher_trains_as_a_live_one(converted: Callable[[str], Path], text: Path, tmp_path: Path):
    goals = {
        "hidden_states": 1.0,
        "layers": [-1],
        "embedding_cosine": 1.0,
        "logits": 1.0,
        "temperature": 2.0,
        "mlm": 1.0,
    }
    live = recipe_of(text, goals, steps=4, learning_rate=1e-3)
    cached = replace(live, cache=True, cache_top=64)
    distill_folder(converted("masked"), DistillOptions(recipe=cached, output=tmp_path / "cached"))
    folders = list(folder_of("teachers").iterdir())
    stamps = [path.stat().st_mtime_ns for path in folders[0].iterdir()]
    distill_folder(converted("masked"), DistillOptions(recipe=cached, output=tmp_path / "again"))
    assert [path.stat().st_mtime_ns for path in folders[0].iterdir()] == stamps
    assert losses(tmp_path / "again") == losses(tmp_path / "cached")
    # One pass over the rows: a cache has one mask a row, and so has a live run that draws each row once.
    distill_folder(converted("masked"), DistillOptions(recipe=live, output=tmp_path / "live"))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), rel=0.02)
    with pytest.raises(FFFError, match="attention maps"):
        distill_folder(
            converted("masked"),
            DistillOptions(
                recipe=replace(recipe_of(text, {"attention": 1.0}), cache=True), output=tmp_path / "other"
            ),
        )


@pytest.mark.parametrize("kind", ["encoder", "masked", "causal"])
def test_without_a_recipe_the_usual_one_is_taken(kind: str, converted: Callable[[str], Path], text: Path):
    loaded = hub.load(str(converted(kind)))
    teacher = hub.load(str(converted(kind).parent / "original")).model
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    texts = [{"sentence": line} for line in text.read_text().splitlines() if line]
    model = fff.distill(loaded.model, teacher, texts, tokenizer=loaded.tokenizer)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("fff_" in name for name in changed)


def test_without_a_recipe_or_a_teacher_the_head_decides(encoder: Path, converted: Callable[[str], Path]):
    headless, causal = (hub.load(str(folder)) for folder in (encoder, converted("causal")))
    with pytest.raises(FFFError, match="has no head to learn from text with; give its teacher"):
        fff.distill(headless.model, None, ["ba be"], tokenizer=headless.tokenizer)
    with pytest.raises(FFFError, match="text 1 is a int; expected text, or a row"):
        fff.distill(causal.model, None, ["ba be", 3], tokenizer=causal.tokenizer)


def test_from_python_with_texts_and_objects(encoder: Path, text: Path):
    loaded = hub.load(str(encoder))
    teacher = hub.load(str(encoder.parent / "original")).model
    before = loaded.model.encoder.layer[0].intermediate.dense.layer.fff_bias.clone()
    texts = text.read_text().splitlines()
    model = fff.distill(
        loaded.model, teacher, texts, recipe_of(Path("unused"), GOALS), tokenizer=loaded.tokenizer
    )
    assert model is loaded.model
    assert not torch.equal(model.encoder.layer[0].intermediate.dense.layer.fff_bias, before)
    assert not model.training
