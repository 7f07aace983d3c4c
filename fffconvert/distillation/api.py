"""Distillation of models in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fffconvert import hub
from fffconvert.distillation.checks import is_causal, local_files
from fffconvert.distillation.data import texts_of_row
from fffconvert.distillation.distiller import has_token_head
from fffconvert.distillation.reading import read_recipe
from fffconvert.distillation.recipe import Objectives, Recipe, Stage, Trained
from fffconvert.distillation.run import Trainee, run_stages
from fffconvert.distillation.signals import placements
from fffconvert.errors import FFFError
from fffconvert.records import plain
from fffconvert.store import fingerprint, written


def distill(
    model: PreTrainedModel,
    teacher: PreTrainedModel | str | None,
    texts: Iterable[str | Mapping[str, Any]] | None = None,
    recipe: Recipe | str | Path | None = None,
    *,
    tokenizer: Any = None,
    folder: str | Path | None = None,
    revision: str | None = None,
) -> PreTrainedModel:
    """Retrain a converted model with its teacher, in place.

    Args:
        model: A converted model.
        teacher: The original, or the name of one; None where no objective compares with it.
        texts: Texts or rows of data to train on; those of the recipe's data by default.
        recipe: A recipe, or the path of one in YAML; by default `default_recipe`.
        tokenizer: The model's tokenizer; that of the teacher's name by default.
        folder: Keeps checkpoints, so that a call with the same folder resumes; a temporary one by default.
        revision: Branch, tag or commit of the teacher's hub id.

    Returns:
        The model (a new object if a stage gives it a new head).

    Raises:
        FFFError: Something does not fit.
    """
    if isinstance(teacher, str):
        loaded = hub.load(teacher, revision=revision)
        teacher, tokenizer = loaded.model, tokenizer or loaded.tokenizer
    if tokenizer is None:
        raise FFFError("text needs a tokenizer; give tokenizer=")
    if recipe is None:
        chosen = default_recipe(model, teacher)
    else:
        chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    trainee = Trainee(model, teacher, tokenizer, places=placements(model))
    given = None if texts is None else _plain(texts, chosen, tokenizer)
    if folder is not None:
        content = fingerprint(plain(chosen), teacher, given, local_files(chosen), repr(model))
        _claim(Path(folder), content)
        return run_stages(trainee, chosen, Path(folder), given).model
    with tempfile.TemporaryDirectory(prefix="fffconvert-") as temporary:
        return run_stages(trainee, chosen, Path(temporary), given).model


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


def _plain(texts: Iterable[Any], recipe: Recipe, tokenizer: Any) -> list[str]:
    """Texts and rows of data as plain texts."""
    found: list[str] = []
    for index, item in enumerate([texts] if isinstance(texts, str | Mapping) else texts):
        if not isinstance(item, str | Mapping):
            raise FFFError(
                f"text {index} is a {type(item).__name__}; expected text, or a row that holds text"
            )
        found += [item] if isinstance(item, str) else texts_of_row(item, recipe.data, tokenizer)
    return found


def _claim(folder: Path, content: str) -> None:
    """Note which run a folder belongs to, or refuse to go on from another one's checkpoints.

    The student's weights do not count: a run that was stopped has trained them, and takes them back.
    """
    own = folder / "run"
    if own.is_file() and own.read_text(encoding="utf-8") != content:
        raise FFFError(
            f"{folder} holds checkpoints of another run (its recipe, teacher or text differ); "
            "choose another folder, or delete it"
        )
    with written(own) as partial:
        partial.write_text(content, encoding="utf-8")
