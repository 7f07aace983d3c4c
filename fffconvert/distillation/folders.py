"""From a converted folder to a distilled one: the command `fffconvert distill`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from fffconvert import hub
from fffconvert.controls import Control, make_control
from fffconvert.distillation.checks import local_files
from fffconvert.distillation.recipe import Recipe
from fffconvert.distillation.resolving import default_recipe, recipe_of, texts_in_memory
from fffconvert.distillation.run import JOURNAL, TENSORBOARD, Trainee, run_stages
from fffconvert.distillation.signals import placements
from fffconvert.errors import FFFError
from fffconvert.hub.metrics import Metrics, Training
from fffconvert.hub.output import METRICS, read_conversion
from fffconvert.options import DistillOptions
from fffconvert.records import load, plain
from fffconvert.store import fingerprint


@dataclass(frozen=True)
class Distilled:
    """What `distill_folder` did.

    Attributes:
        model: The model.
        output: The folder.
        training: What `metrics.json` says of it.
    """

    model: Any
    output: Path
    training: Training


def distill_folder(source: str | Path, options: DistillOptions) -> Distilled:
    """Distil a converted folder, or a control of it, into another folder.

    Checkpoints stand beside the output until it is complete. The same call goes on from the last one.

    Args:
        source: What `convert` or `distill` wrote.
        options: How.

    Raises:
        FFFError: Bad input, or a fault in training; checkpoints stay.
    """
    if options.output is None:
        raise FFFError("a model given by name is written to a folder; give `output`")
    if options.teacher is not None and not isinstance(options.teacher, str):
        raise FFFError("the teacher of a folder is given by its name, which is written down there")
    output, overwrite, control = options.output, options.overwrite, options.control
    path = hub.check_output(output, overwrite=overwrite)
    conversion = read_conversion(source)
    name, revision = _teacher(conversion, options.teacher, options.revision)
    converted = hub.load(str(source))
    original = hub.load(name, revision=revision)
    recipe = recipe_of(options, lambda: default_recipe(converted.model, original.model))
    document = {
        **conversion,
        "source": str(source),
        "teacher": name,
        "teacher_revision": revision,
        **({"control": control.value} if control else {}),
        "distill": plain(recipe),
    }
    state = PartialState()
    work = path.with_name(f".{path.name}.training")
    tokenizer = converted.tokenizer or original.tokenizer
    if tokenizer is None:
        raise FFFError(f"{source} has no tokenizer, and neither has {name}; text needs one")
    given = texts_in_memory(options, recipe, tokenizer)
    if state.is_main_process:
        content = fingerprint(converted.model, original.model, given, local_files(recipe))
        _open_work(work, {**document, "content": content}, restart=options.restart)
    state.wait_for_everyone()
    places = placements(converted.model)
    student = make_control(source, control) if control else converted
    trainee = Trainee(student.model, original.model, tokenizer, control, places)
    trained = run_stages(trainee, recipe, work, given)
    training = Training(
        trained.tokens,
        trained.steps,
        round(trained.seconds, 1),
        round(trained.tokens / max(trained.seconds, 1e-9), 1),
        trained.eval_loss,
        control.value if control else None,
        plain(recipe),
    )
    if state.is_main_process:
        metrics = replace(_earlier_metrics(source, control), training=training)
        hub.save(
            trained.model,
            tokenizer,
            path,
            recipe=document,
            metrics=metrics,
            files=[work / JOURNAL, work / TENSORBOARD],
            overwrite=overwrite,
        )
        shutil.rmtree(work, ignore_errors=True)
    state.wait_for_everyone()
    return Distilled(trained.model, path, training)


def recipe_of_folder(source: str | Path, options: DistillOptions) -> Recipe:
    """The recipe by which a folder would be distilled; its models are read only where the options name none.

    Raises:
        FFFError: The recipe cannot be read, or a key or value is wrong.
    """

    def default() -> Recipe:
        name, revision = _teacher(read_conversion(source), options.teacher, options.revision)
        return default_recipe(hub.load(str(source)).model, hub.load(name, revision=revision).model)

    return recipe_of(options, default)


def _teacher(
    conversion: Mapping[str, Any], teacher: str | None, revision: str | None
) -> tuple[str, str | None]:
    """Name and revision of the teacher: without other wishes those of the model that was converted."""
    if teacher is None:
        return str(conversion["model"]), revision or conversion.get("revision")
    return teacher, revision


def _open_work(work: Path, document: Mapping[str, Any], *, restart: bool) -> None:
    """Make the folder for checkpoints, or find that of the same run."""
    key, own = json.dumps(document, sort_keys=True, indent=1), work / "run.json"
    if restart:
        shutil.rmtree(work, ignore_errors=True)
    if own.is_file() and own.read_text(encoding="utf-8") != key:
        raise FFFError(
            f"{work} holds checkpoints of another run (its recipe, weights or text differ); choose another "
            "`output`, or drop them with `restart=True`"
        )
    work.mkdir(parents=True, exist_ok=True)
    own.write_text(key, encoding="utf-8")


def _earlier_metrics(source: str | Path, control: Control | None) -> Metrics:
    """What was measured at conversion; a control has only its name."""
    path = Path(source, METRICS)
    if control or not path.is_file():
        return Metrics((), control=control.value if control else None)
    return load(Metrics, path)
