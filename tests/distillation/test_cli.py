"""The command: what it prints, what it refuses, and that it can be interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fffconvert as fff
from fffconvert import hub
from fffconvert.cli import app
from fffconvert.distillation import Recipe
from fffconvert.errors import FFFError
from fffconvert.records import read

GOALS = {"hidden_states": 1.0, "embedding_cosine": 1.0}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["distill", *(str(argument) for argument in arguments)])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    stage = {"tokens": 100000, "batch_size": 4, "objectives": GOALS}
    path.write_text(yaml.safe_dump({"stages": [stage], "data": {"length": 16, "held_out": 0.1}}))
    return path


def test_flags_go_before_the_recipe_and_json_is_all_that_is_printed(
    converted: Callable[[str], Path], recipe: Path, text: Path, tmp_path: Path
):
    flags = ["--recipe", recipe, "--data", text, "--steps", 3, "--set", "stages.batch_size=5", "--seed", 4]
    plan = json.loads(run(converted("encoder"), *flags, "-o", tmp_path / "out", "--dry-run", "--json").stdout)
    assert not (tmp_path / "out").exists()
    stage = plan["recipe"]["stages"][0]
    assert (stage["steps"], stage["tokens"], stage["batch_size"], plan["recipe"]["seed"]) == (3, 0, 5, 4)
    found = run(converted("encoder"), *flags, "-o", tmp_path / "out", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["training"]["steps"] == 3
    assert document["training"]["recipe"] == plan["recipe"]
    assert Path(document["output"]) == tmp_path / "out"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", 1, "--train-tokens", 5], "expected one"),
        (["--set", "seed"], "--set is 'seed'; expected a name, = and a value"),
        (["--set", "stages.seed=1"], "unknown key stages.0.seed"),
        (["--set", "stages.objectives.mlm=1"], "masked-language-model head"),
        (["--set", "stages.objectives.clm=1"], "causal-language-model head"),
        (["--set", "stages.objectives.logits=1"], "prediction head"),
        (["--set", "stages.objectives.attention=1", "--cache"], "no cache holds"),
        (["--teacher", "./nowhere"], "no model folder"),
        (["--data", "none.txt"], "none.txt does not exist"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    flags: list[Any], message: str, converted: Callable[[str], Path], recipe: Path, text: Path, tmp_path: Path
):
    given = flags if "--data" in flags else ["--data", text, *flags]
    found = run(converted("encoder"), "--recipe", recipe, *given, "-o", tmp_path / "out")
    assert found.exit_code == 2, found.output
    lines = [line for line in found.stderr.splitlines() if line.startswith("fffconvert:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_labels_need_a_classifier_and_blocks_need_layers(
    converted: Callable[[str], Path], text: Path, tmp_path: Path
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "ba be bi bo", "label": {i % 2}}}\n' for i in range(20)))
    data = {"train": [str(rows)], "label": "label", "length": 16}
    loaded = hub.load(str(converted("encoder")))
    teacher = hub.load(str(converted("encoder").parent / "original"))
    for model, stage, message in (
        (loaded.model, {"kind": "task", "objectives": {"labels": 1.0}}, "no classification head"),
        (teacher.model, {"kind": "blocks"}, "the model has none; convert it first"),
        (loaded.model, {"objectives": {"logits": 1.0, "hidden_states": 1.0}}, "student is BertModel"),
    ):
        chosen = read(Recipe, {"stages": [{"steps": 1, **stage}], "data": data})
        with pytest.raises(FFFError, match=message):
            fff.distill(model, teacher.model, None, chosen, tokenizer=loaded.tokenizer)
    chosen = read(Recipe, {"stages": [{"steps": 1, "objectives": GOALS}], "data": data})
    with pytest.raises(FFFError, match="give `teacher`"):
        fff.distill(loaded.model, None, None, chosen, tokenizer=loaded.tokenizer)


def test_an_interrupted_run_keeps_the_step_it_was_at(
    converted: Callable[[str], Path], recipe: Path, text: Path, tmp_path: Path
):
    command = [
        sys.executable,
        "-c",
        "from fffconvert.cli import main; main()",
        "distill",
        converted("encoder"),
    ]
    flags = [
        "--recipe",
        recipe,
        "--data",
        text,
        "--set",
        "log_steps=1",
        "--steps",
        100000,
        "-o",
        tmp_path / "out",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(fff.__file__).parents[1])}
    process = subprocess.Popen(
        [str(part) for part in (*command, *flags)], stderr=subprocess.PIPE, text=True, env=environment
    )
    journal, deadline = tmp_path / ".out.training/training.jsonl", time.monotonic() + 120
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (checkpoint,) = (tmp_path / ".out.training/stage-0").glob("checkpoint-*/complete")
    assert checkpoint.parent.name != "checkpoint-0"
