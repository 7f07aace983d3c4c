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
from fffconvert.distillation.run import JOURNAL, TENSORBOARD, Trainee, run_stages
from fffconvert.distillation.signals import placements
from fffconvert.errors import FFFError
from fffconvert.hub.metrics import Metrics, Training
from fffconvert.hub.output import METRICS, read_conversion
from fffconvert.records import load, plain
from fffconvert.store import fingerprint


@dataclass(frozen=True)
class Distilled:
    """What `distill_model` did.

    Attributes:
        output: The folder.
        training: What `metrics.json` says of it.
    """

    output: Path
    training: Training


def distill_model(
    source: str | Path,
    recipe: Recipe,
    output: str | Path,
    *,
    teacher: str | None = None,
    revision: str | None = None,
    control: Control | None = None,
    overwrite: bool = False,
    restart: bool = False,
) -> Distilled:
    """Distil a converted folder, or a control of it, into another folder.

    Checkpoints stand beside the output until it is complete. The same call goes on from the last one.

    Args:
        source: What `convert` or `distill` wrote.
        recipe: The run.
        output: Folder to write; written atomically.
        teacher: Name of the teacher; the original that the source was converted from by default.
        revision: Branch, tag or commit of the teacher's hub id; of the original by default the converted one.
        control: Train this in the conversion's place.
        overwrite: Replace an earlier output.
        restart: Drop the checkpoints of an earlier call instead of going on from them.

    Raises:
        FFFError: Bad input, or a fault in training; checkpoints stay.
    """
    path = hub.check_output(output, overwrite=overwrite)
    conversion = read_conversion(source)
    name, revision = _teacher(conversion, teacher, revision)
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
    converted = hub.load(str(source))
    original = hub.load(name, revision=revision)
    if state.is_main_process:
        content = fingerprint(converted.model, original.model, local_files(recipe))
        _open_work(work, {**document, "content": content}, restart=restart)
    state.wait_for_everyone()
    places = placements(converted.model)
    student = make_control(source, control) if control else converted
    tokenizer = converted.tokenizer or original.tokenizer
    if tokenizer is None:
        raise FFFError(f"{source} has no tokenizer, and neither has {name}; text needs one")
    trainee = Trainee(student.model, original.model, tokenizer, control, places)
    trained = run_stages(trainee, recipe, work)
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
    return Distilled(path, training)


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
            "-o, or drop them with --restart"
        )
    work.mkdir(parents=True, exist_ok=True)
    own.write_text(key, encoding="utf-8")


def _earlier_metrics(source: str | Path, control: Control | None) -> Metrics:
    """What was measured at conversion; a control has only its name."""
    path = Path(source, METRICS)
    if control or not path.is_file():
        return Metrics((), control=control.value if control else None)
    return load(Metrics, path)
