"""What fffconvert wrote about a model, as one or more folders hold it: the data of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fffconvert.benchmarks.model.rows import ModelBenchmark
from fffconvert.errors import FFFError, first_line
from fffconvert.evaluation.grid import SweepResult
from fffconvert.evaluation.results import Evaluation
from fffconvert.hub.metrics import Metrics, Step
from fffconvert.records import load, read

Kind = TypeVar("Kind")

RECIPE, METRICS, TRAINING = "fffconvert.yaml", "metrics.json", "training.jsonl"
EVALUATION, BENCHMARK, SWEEP = "eval.json", "bench.json", "sweep.json"
DOCUMENTS = (METRICS, RECIPE, TRAINING, EVALUATION, BENCHMARK, SWEEP)


@dataclass(frozen=True)
class Conversion:
    """All that a folder says about a model.

    Attributes:
        folder: Where it was read.
        label: What it is called beside others.
        recipe: `fffconvert.yaml`, or nothing.
        metrics: `metrics.json`.
        training: `training.jsonl`, line by line.
        evaluation: `eval.json`.
        benchmark: `bench.json`.
        sweep: `sweep.json`.
    """

    folder: Path
    label: str
    recipe: dict[str, Any]
    metrics: Metrics | None
    training: tuple[Step, ...]
    evaluation: Evaluation | None
    benchmark: ModelBenchmark | None
    sweep: SweepResult | None

    @property
    def conversion(self) -> dict[str, Any]:
        """How it was converted; in the recipe of a distillation, that of what was distilled."""
        found = self.recipe.get("conversion")
        return found if isinstance(found, dict) else self.recipe

    @property
    def base(self) -> str:
        """The model that was converted."""
        named = self.conversion.get("model") or (self.evaluation and self.evaluation.teacher)
        return str(named or (self.sweep and self.sweep.model) or self.label)


def read_conversion(folder: Path, label: str | None = None) -> Conversion:
    """Read whatever documents a folder holds.

    Args:
        folder: Output of `fffconvert convert`, `distill`, `eval`, `bench` or `sweep`.
        label: What to call it; by default, the folder's name.

    Raises:
        FFFError: There is no document, or one cannot be read.
    """
    if not folder.is_dir():
        raise FFFError(f"{folder} is no folder; expected one that fffconvert convert, eval or sweep wrote")
    if not any((folder / name).is_file() for name in DOCUMENTS):
        raise FFFError(f"{folder} holds none of {', '.join(DOCUMENTS)}; expected the output of fffconvert")
    return Conversion(
        folder=folder,
        label=label or folder.resolve().name,
        recipe=_recipe(folder / RECIPE),
        metrics=_document(Metrics, folder / METRICS, "fffconvert convert"),
        training=_training(folder / TRAINING),
        evaluation=_document(Evaluation, folder / EVALUATION, "fffconvert evaluate"),
        benchmark=_document(ModelBenchmark, folder / BENCHMARK, "fffconvert bench"),
        sweep=_document(SweepResult, folder / SWEEP, "fffconvert sweep"),
    )


def _document(kind: type[Kind], path: Path, command: str) -> Kind | None:
    if not path.is_file():
        return None
    try:
        return load(kind, path)
    except (ValueError, OSError) as error:  # malformed JSON, another encoding, or FFFError
        raise _unreadable(path, error, command) from None


def _training(path: Path) -> tuple[Step, ...]:
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        # A run that is going on, or was killed, may leave its last line half written: it ends in no newline.
        return tuple(
            read(Step, json.loads(line), f"{path.name} line {number}", "program")
            for number, line in enumerate(lines[:-1], start=1)
            if line.strip()
        )
    except (ValueError, OSError) as error:
        raise _unreadable(path, error, "fffconvert distill") from None


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise _unreadable(path, error, "fffconvert convert") from None
    if not isinstance(values, Mapping):
        raise _unreadable(path, FFFError("expected names and values"), "fffconvert convert")
    return dict(values)


def _unreadable(path: Path, error: Exception, command: str) -> FFFError:
    return FFFError(f"cannot read {path}: {first_line(error)}; make it again with {command}")
