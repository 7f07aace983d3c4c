"""`distill`, of models in memory and of folders."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypeVar, cast

from transformers import PreTrainedModel

from fffconvert import hub
from fffconvert.distillation.checks import local_files
from fffconvert.distillation.folders import distill_folder
from fffconvert.distillation.resolving import default_recipe, recipe_of, texts_in_memory
from fffconvert.distillation.run import Trainee, run_stages
from fffconvert.distillation.signals import placements
from fffconvert.errors import FFFError
from fffconvert.options import DistillOptions, verb
from fffconvert.records import plain
from fffconvert.store import fingerprint, written

Student = TypeVar("Student", bound=PreTrainedModel)


@verb(DistillOptions)
def distill(model: Student | str | Path, options: DistillOptions) -> Student:
    """Retrain a converted model with its teacher.

    Args:
        model: A converted model, which is trained in place, or a folder that `convert` or `distill` wrote.

    Returns:
        The model (a new object if a stage gives it a new head).

    Raises:
        FFFError: Something does not fit.
    """
    if isinstance(model, str | Path):
        found: Student = distill_folder(model, options).model
        return found
    if options.output is not None or options.control is not None:
        raise FFFError("`output` and `control` are for a model given by name; save this one yourself")
    teacher, tokenizer = options.teacher, options.tokenizer
    if isinstance(teacher, str):
        loaded = hub.load(teacher, revision=options.revision)
        teacher, tokenizer = loaded.model, tokenizer or loaded.tokenizer
    if tokenizer is None:
        raise FFFError("text needs a tokenizer; give tokenizer=")
    chosen = recipe_of(options, lambda: default_recipe(model, teacher))
    trainee = Trainee(model, teacher, tokenizer, places=placements(model))
    given = texts_in_memory(options, chosen, tokenizer)
    if options.folder is not None:
        folder = Path(options.folder)
        _claim(folder, fingerprint(plain(chosen), teacher, given, local_files(chosen), repr(model)))
        return cast(Student, run_stages(trainee, chosen, folder, given).model)
    with tempfile.TemporaryDirectory(prefix="fffconvert-") as temporary:
        return cast(Student, run_stages(trainee, chosen, Path(temporary), given).model)


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
