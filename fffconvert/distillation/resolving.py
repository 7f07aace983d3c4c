"""What the options of `distill` come to: one recipe, and the text that is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from fffconvert.distillation.checks import is_causal
from fffconvert.distillation.data import texts_of_row
from fffconvert.distillation.distiller import has_token_head
from fffconvert.distillation.reading import changed_recipe, read_recipe
from fffconvert.distillation.recipe import Objectives, Recipe, Stage, Trained
from fffconvert.errors import FFFError
from fffconvert.fit.corpus import names_of_texts
from fffconvert.options import DistillOptions, TextSource


def recipe_of(options: DistillOptions, default: Callable[[], Recipe]) -> Recipe:
    """The recipe with all that the options change in it.

    Args:
        options: How to distil.
        default: Makes the recipe if the options name none.

    Raises:
        FFFError: The recipe cannot be read, or a key or value is wrong.
    """
    changes = {
        key: yaml.safe_load(v) if isinstance(v, str) else v for key, v in (options.settings or {}).items()
    }
    flags = {
        "data.train": names_of_texts(options.data),
        "data.evaluation": names_of_texts(options.text),
        "data.text": list(options.text_columns),
        "data.lines": options.lines,
        "seed": options.seed,
        "cache": options.cache,
    }
    changes |= {key: value for key, value in flags.items() if value not in (None, [], False)}
    for name, count in (("tokens", options.train_tokens), ("steps", options.steps)):
        if count is not None:
            changes |= {f"stages.{other}": 0 for other in ("tokens", "steps", "epochs")}
            changes[f"stages.{name}"] = count
    if isinstance(options.recipe, str | Path):
        return read_recipe(options.recipe, changes)
    return changed_recipe(options.recipe or default(), changes)


def default_recipe(model: PreTrainedModel, teacher: PreTrainedModel | None) -> Recipe:
    """One pass over the text, end to end: states and predictions, or states and embeddings of the teacher.

    The fitted trees stay: short runs on them undo more than they win.

    Raises:
        FFFError: There is neither a teacher nor a head to learn from text with.
    """
    predicts = has_token_head(model)
    if teacher is None and not predicts:
        raise FFFError(f"{type(model).__name__} has no head to learn from text with; give its teacher")
    if teacher is None:
        goals = Objectives(clm=1.0) if is_causal(model) else Objectives(mlm=1.0)
    elif predicts and has_token_head(teacher):
        goals = Objectives(hidden_states=1.0, logits=1.0)
    else:
        goals = Objectives(hidden_states=1.0, embedding_cosine=5.0, embedding_similarity=20.0)
    stage = Stage(epochs=1, objectives=goals, learning_rate=3e-4, trained=Trained(trees=False))
    return Recipe(stages=(stage,))


def texts_in_memory(options: DistillOptions, recipe: Recipe, tokenizer: Any) -> list[str] | None:
    """Texts and rows of data to train on, as plain texts; None if they come from files and datasets.

    Raises:
        FFFError: An item is neither.
    """
    given = options.data
    items = [given] if isinstance(given, str | Mapping) else list(given or ())
    items = [item for item in items if not isinstance(item, TextSource | Path)]
    found: list[str] = []
    for index, item in enumerate(items):
        if not isinstance(item, str | Mapping):
            raise FFFError(
                f"text {index} is a {type(item).__name__}; expected text, or a row that holds text"
            )
        found += [item] if isinstance(item, str) else texts_of_row(item, recipe.data, tokenizer)
    return None if given is None or (not items and names_of_texts(given)) else found
