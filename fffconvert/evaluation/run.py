"""`evaluate`: a model on tasks, beside its teacher and controls."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from fffconvert import __version__
from fffconvert.errors import FFFError, first_line, need
from fffconvert.evaluation.ablation import Ablation, measure_ablation
from fffconvert.evaluation.card import update_card
from fffconvert.evaluation.compare import measure, row
from fffconvert.evaluation.data import NotThere
from fffconvert.evaluation.results import RESULTS, SECTIONS, write_results
from fffconvert.evaluation.robustness import Robustness, measure_robustness
from fffconvert.evaluation.routing import Routing, measure_routing
from fffconvert.evaluation.subject import Subject, check_comparable
from fffconvert.evaluation.tasks import TASKS, Options, resolve_tasks
from fffconvert.hub.output import RECIPE, read_conversion
from fffconvert.options import EvaluateOptions, verb
from fffconvert.options.common import expand
from fffconvert.processor import cpu
from fffconvert.records import plain
from fffconvert.store import digest, write_json

RESERVED = ("model", "teacher", "value", "ci95", "n", "limit", "metric", "retained", "recovered", "seconds")


@verb(EvaluateOptions)
def evaluate(model: str | Path | nn.Module, options: EvaluateOptions) -> dict[str, Any]:
    """Measure what a model can do, beside its teacher and controls.

    Every figure comes with a 95 % interval: percentiles over 1,000 draws of the task's examples. Results are
    stored by the content of weights, data and options; a second call goes on where the first stopped.

    Args:
        model: A name (hub id, folder, GGUF file, `pkg:DIST[/PATH]`) or a model in memory.

    Returns:
        The results: `model`, `teacher`, `tasks` by name, `robustness`, `ablation`, `routing` where asked for,
        and `environment`.

    Raises:
        FFFError: A task is unknown, its data or a package that it needs is missing, data is malformed, a
            model cannot be read, or the teacher or a control has another tokenizer or width.
    """
    tasks, teacher, tokenizer = options.tasks, options.teacher, options.tokenizer
    named = resolve_tasks(tasks, [*TASKS, *SECTIONS])
    names = {name: wanted for name, wanted in named.items() if name in TASKS}
    sections = [name for name in named if name in SECTIONS]
    reading: dict[str, Any] = {
        "trust_remote_code": options.trust_remote_code,
        "device": _device(options.device),
    }
    first = Subject("model", model, tokenizer, revision=options.revision, **reading)
    beside = (
        _original(model, reading) if teacher is None else Subject("teacher", teacher, tokenizer, **reading)
    )
    subjects = [
        first,
        *([] if beside is None else [beside]),
        *(
            Subject(role, other, tokenizer, **reading)
            for role, other in _roles(options.controls or {}).items()
        ),
    ]
    texts = [Path(text) for text in options.text]
    settings = Options(
        expand(options.data_dir),
        tuple(texts),
        options.text_columns,
        options.lines,
        first.tokenizer if any(".jsonl" in text.name for text in texts) else None,
        options.limit,
        options.seeds,
        options.epochs,
    )
    data = _read(names, settings) if names else {}
    for name in data:
        if TASKS[name].beside_teacher and beside is None:
            raise FFFError(f"task {name} compares with a teacher; give one with `teacher`")
    for other in subjects[1:]:
        check_comparable(first, other)
    results: dict[str, dict[str, Any]] = {name: {} for name in data}
    with tqdm(total=len(subjects) * len(data), desc="evaluate", unit="task", disable=None) as bar:
        for subject in subjects:
            for name, (rows, _) in data.items():
                bar.set_postfix_str(f"{subject.role}, {name}")
                task, key = TASKS[name], digest(name, rows, options.limit)
                if not (task.beside_teacher and subject is beside):
                    results[name][subject.role] = measure(task, rows, key, subject, beside, settings)
                bar.update()
            if subject not in (first, beside):
                subject.release()
    document: dict[str, Any] = {
        "model": first.name,
        "teacher": None if beside is None else beside.name,
        "tasks": {
            name: row(TASKS[name], data[name][1], found, options.limit) for name, found in results.items()
        },
    }
    for name in sections:
        document[name] = _section(name, subjects, beside, settings)
    document = plain(document | {"environment": environment()})
    if options.output is not None:
        write_json(Path(options.output), document)
    if isinstance(model, (str, Path)) and (Path(model).expanduser() / RECIPE).is_file():
        write_results(Path(model).expanduser() / RESULTS, document)
        update_card(Path(model).expanduser())
    return document


def _section(
    name: str, subjects: Sequence[Subject], teacher: Subject | None, options: Options
) -> Robustness | Ablation | Routing:
    model, *others = subjects
    if name == "robustness":
        return measure_robustness(model, teacher, options)
    return measure_ablation(model, options) if name == "ablation" else measure_routing(model, others, options)


def _read(names: Mapping[str, bool], options: Options) -> dict[str, tuple[Any, str]]:
    """Data and source of each task; those of groups whose data is not there are left out with a warning."""
    found, missing = {}, []
    for name, wanted in names.items():
        for package in TASKS[name].packages:
            need(package, f"task {name}", "eval")
        try:
            found[name] = TASKS[name].read(options)
        except NotThere:
            if wanted:
                raise
            missing.append(name)
    if not found:
        raise FFFError(f"there is data of none of {', '.join(names)}; give its folder with `data_dir`")
    if missing:
        warnings.warn(f"left out, for their data is not there: {', '.join(missing)}", stacklevel=3)
    return found


def _original(model: Any, reading: Mapping[str, Any]) -> Subject | None:
    """The model that the folder of a conversion was made from, if it can still be read."""
    if not isinstance(model, (str, Path)):
        return None
    try:
        recipe = read_conversion(Path(model).expanduser())
    except FFFError:
        return None
    if not isinstance(recipe["model"], str):
        return None
    found = Subject("teacher", recipe["model"], revision=recipe.get("revision"), **reading)
    try:
        _ = found.tokenizer
    except FFFError as error:
        warnings.warn(f"goes on without the original {found.name} as teacher: {error}", stacklevel=3)
        return None
    return found


def _roles(controls: Mapping[str, Any] | None) -> dict[str, Any]:
    """Controls by the names that they have in the results."""
    roles = {name.replace("-", "_"): given for name, given in (controls or {}).items()}
    for name in roles:
        if name in RESERVED or not name.isidentifier():
            raise FFFError(f"control {name!r} cannot be called so; expected ablated, dense, random-routing")
    return roles


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise FFFError(f"device {name} cannot be used: {first_line(error)}; expected cpu or cuda") from error
    return device


def environment() -> dict[str, Any]:
    """Versions and processor that the results were made with."""
    versions = {"fffconvert": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "datasets", "numpy", "scipy", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = cpu()
    return {
        "versions": versions,
        "platform": sys.platform,
        "cpu": processor.model,
        "threads": processor.threads,
    }
