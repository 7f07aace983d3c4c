"""Recipes: the ones that come along, what is refused, and how flags override."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fffconvert import hub
from fffconvert.distillation import Recipe, read_recipe
from fffconvert.distillation.recipe import Data, Kind, Stage
from fffconvert.distillation.run import Trainee, run_stages
from fffconvert.distillation.signals import placements
from fffconvert.errors import FFFError
from fffconvert.records import plain, read

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
TINY = {"minilm-laptop.yaml": "encoder", "smollm2-clm.yaml": "causal"}
STAGE = {"steps": 1, "objectives": {"mlm": 1.0}}


def test_there_are_recipes_for_every_kind_of_model():
    assert {"ultrafastbert-1x11.yaml", "minilm-laptop.yaml", "rxnfp-mlm.yaml", "smollm2-clm.yaml"} <= set(
        RECIPES
    )
    assert "fsdp.yaml" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_a_tiny_model_for_a_few_steps(
    name: str, converted: Callable[[str], Path], text: Path, tmp_path: Path
):
    labelled = tmp_path / "rows.jsonl"
    words = [line for line in text.read_text().splitlines() if line]
    labelled.write_text("".join(f'{{"text": "{line}", "label": {i % 2}}}\n' for i, line in enumerate(words)))
    recipe = read_recipe(FOLDER / name)
    own = Data(
        train=(str(labelled),), length=16, held_out=0.1, mask=recipe.data.mask, layout=recipe.data.layout
    )
    stages = tuple(
        replace(
            stage,
            **{"steps": 2, "tokens": 0, "epochs": 0.0, "batch_size": 4, "accumulation": 1},
            data=replace(own, label="label") if stage.kind is Kind.TASK else None,
        )
        for stage in recipe.stages
    )
    recipe = replace(recipe, stages=stages, data=own, cache=False)
    source = converted(TINY.get(name, "masked"))
    loaded, teacher = hub.load(str(source)), hub.load(str(source.parent / "original"))
    trainee = Trainee(loaded.model, teacher.model, loaded.tokenizer, places=placements(loaded.model))
    found = run_stages(trainee, recipe, tmp_path / "work")
    assert found.steps == 2 * len(stages)
    assert found.tokens > 0


def test_a_recipe_is_the_same_after_yaml():
    recipe = read_recipe(FOLDER / "minilm-laptop.yaml")
    assert read(Recipe, yaml.safe_load(yaml.safe_dump(plain(recipe)))) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": [STAGE]}, "unknown key stage; did you mean stages"),
        ({"stages": [{**STAGE, "lerning_rate": 1}]}, "lerning_rate; did you mean stages.0.learning_rate"),
        ({"stages": [{**STAGE, "steps": "many"}]}, "stages.0.steps is 'many'; expected a whole number"),
        ({"stages": [{**STAGE, "steps": True}]}, "stages.0.steps is True; expected a whole number"),
        ({"stages": [{**STAGE, "kind": "end2end"}]}, "expected one of blocks, end-to-end, task"),
        ({"stages": [{**STAGE, "dropout": "no way"}]}, "expected true or false"),
        ({"stages": [{**STAGE, "learning_rate": -1.0}]}, "learning_rate is -1.0; expected 0 or more"),
        ({"stages": [STAGE], "data": {"mask": 1.5}}, "data.mask is 1.5; expected 0 to 1"),
        ({"stages": [{**STAGE, "batch_size": 0}]}, "stages.0.batch_size is 0; expected more than 0"),
        ({"stages": []}, "no stages"),
        ({"stages": [{"objectives": {"mlm": 1.0}}]}, "exactly one of steps, tokens and epochs"),
        ({"stages": [{**STAGE, "tokens": 5}]}, "exactly one of steps, tokens and epochs"),
        ({"stages": [{"steps": 1}]}, "has no objective; give one of block_outputs, hidden_states"),
        ({"stages": [{"steps": 1, "objectives": {"labels": 1.0}}]}, "data.label names no column"),
        ({"stages": [{**STAGE, "steps": 0, "epochs": 1}], "data": {"streaming": True}}, "give steps instead"),
        ({"stages": 3}, "stages.0 is 3; expected keys and values"),
        ([], "expected keys and values"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_in_one_line(values, message):
    with pytest.raises(FFFError, match=message) as caught:
        read(Recipe, values)
    assert "\n" not in str(caught.value)


def test_numbers_may_be_written_as_science_does(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("stages: [{steps: 3, learning_rate: 4e-5, objectives: {clm: 1}}]", encoding="utf-8")
    stage = read_recipe(path).stages[0]
    assert (stage.learning_rate, stage.objectives.clm) == (4e-5, 1.0)


def test_settings_go_before_the_file(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    stages = [dict(STAGE), dict(STAGE)]
    path.write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    recipe = read_recipe(path, {"stages.batch_size": 5, "stages.1.steps": 9, "data.length": 32, "seed": 3})
    assert [stage.batch_size for stage in recipe.stages] == [5, 5]
    assert [stage.steps for stage in recipe.stages] == [1, 9]
    assert (recipe.data.length, recipe.seed) == (32, 3)
    with pytest.raises(FFFError, match="names part 2 of 2"):
        read_recipe(path, {"stages.2.steps": 1})
    with pytest.raises(FFFError, match=r"unknown key data.lenght; did you mean data.length"):
        read_recipe(path, {"data.lenght": 1})


def test_a_file_that_is_no_recipe(tmp_path: Path):
    with pytest.raises(FFFError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(FFFError, match="holds a list"):
        read_recipe(tmp_path / "list.yaml")


def test_routes_freeze_after_their_share():
    stage = read(Stage, {"routing": {"freeze_after": 0.5}})
    assert stage.freeze_step(10) == 5
    assert Stage().freeze_step(10) == float("inf")
