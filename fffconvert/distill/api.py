"""Distillation of models in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fffconvert import hub
from fffconvert.distill.checks import local_files
from fffconvert.distill.reading import read_recipe
from fffconvert.distill.recipe import Recipe
from fffconvert.distill.run import Trainee, run_stages
from fffconvert.distill.signals import placements
from fffconvert.errors import FFFError
from fffconvert.store import fingerprint, written


def distill(
    model: PreTrainedModel,
    teacher: PreTrainedModel | str | None,
    texts: Iterable[str] | None = None,
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
        texts: Texts to train on; those of the recipe's data by default.
        recipe: A recipe, or the path of one in YAML.
        tokenizer: The model's tokenizer; that of the teacher's name by default.
        folder: Keeps checkpoints, so that a call with the same folder resumes; a temporary one by default.
        revision: Branch, tag or commit of the teacher's hub id.

    Returns:
        The model (a new object if a stage gives it a new head).

    Raises:
        FFFError: Something does not fit.
    """
    if recipe is None:
        raise FFFError("distill needs a recipe: a fffconvert.distill.Recipe, or the path of a YAML file")
    chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if isinstance(teacher, str):
        loaded = hub.load(teacher, revision=revision)
        teacher, tokenizer = loaded.model, tokenizer or loaded.tokenizer
    if tokenizer is None:
        raise FFFError("text needs a tokenizer; give tokenizer=")
    trainee = Trainee(model, teacher, tokenizer, places=placements(model))
    given = None if texts is None else [str(text) for text in texts]
    if folder is not None:
        content = fingerprint(chosen.to_dict(), teacher, given, local_files(chosen), repr(model))
        _claim(Path(folder), content)
        return run_stages(trainee, chosen, Path(folder), given).model
    with tempfile.TemporaryDirectory(prefix="fffconvert-") as temporary:
        return run_stages(trainee, chosen, Path(temporary), given).model


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
