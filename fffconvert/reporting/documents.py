"""What fffconvert wrote about a model, as one or more folders hold it: the data of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fffconvert.errors import FFFError, first_line
from fffconvert.planning import leaf_in_words
from fffconvert.reporting.parsing import parse

Kind = TypeVar("Kind")

RECIPE, METRICS, TRAINING = "fffconvert.yaml", "metrics.json", "training.jsonl"
EVALUATION, BENCHMARK, SWEEP = "eval.json", "bench.json", "sweep.json"
DOCUMENTS = (METRICS, RECIPE, TRAINING, EVALUATION, BENCHMARK, SWEEP)
OURS = ("fffconvert", "deployed", "undeployed", "exported")
"""How the names of runtimes begin that compute trees; others are baselines."""


@dataclass(frozen=True)
class Block:
    """A converted block, as `metrics.json` has it; see `fffconvert.conversion.BlockResult`."""

    name: str
    trees: int
    depth: int
    active_width: int
    active_fraction: float
    parameters: int
    parameters_before: int
    macs_share: float
    trunk: int = 0
    leaf_width: int = 0
    leaf_sparsity: float = 0.0
    r2_heldout: float | None = None
    token_r2_heldout: float | None = None
    routing_entropy: float | None = None
    dead_node_share: float | None = None
    path_balance: float | None = None

    @property
    def shape(self) -> str:
        """The shape in words: 1x11, with its trunk and leaves."""
        extras = [f" + trunk {self.trunk}"] if self.trunk else []
        leaf = leaf_in_words(self.leaf_width, self.leaf_sparsity)
        extras += [f" + leaves of {leaf}"] if self.leaf_width else []
        return f"{self.trees}x{self.depth}{''.join(extras)}"


@dataclass(frozen=True)
class Metrics:
    """`metrics.json`."""

    blocks: tuple[Block, ...]
    seconds: float | None = None
    control: str | None = None
    training: dict[str, Any] | None = None


@dataclass(frozen=True)
class TaskScore:
    """One task of `eval.json`: the converted model beside its teacher and the controls.

    Intervals are of 95 %; `ci95_of` has those of the teacher and the controls. `verdicts` has "better",
    "worse" or "undecided" against each control. What was recovered is unclear where deleting all blocks costs
    nothing that shows.
    """

    metric: str
    value: float | None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    teacher: float | None = None
    ablated: float | None = None
    dense: float | None = None
    random_routing: float | None = None
    retained: float | None = None
    recovered: float | None = None
    limit: int | None = None
    higher_is_better: bool = True
    verdicts: dict[str, str] = field(default_factory=dict)
    ci95_of: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    retained_ci95: tuple[float, float] | None = None
    recovered_ci95: tuple[float, float] | None = None
    recovered_unclear: bool = False


@dataclass(frozen=True)
class RobustnessRow:
    """The model on one shifted input."""

    name: str
    kind: str
    metric: str | None
    value: float | None
    ci95: tuple[float, float] | None = None
    teacher: float | None = None
    retained: float | None = None
    routing_overlap: float | None = None
    neurons_used: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class AblationRow:
    """The model with its routing changed."""

    name: str
    metric: str
    value: float | None
    ci95: tuple[float, float] | None = None
    cost: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Level:
    """How the tokens spread over one level of a tree."""

    level: int
    nodes: int
    visited: int
    entropy: float | None = None


@dataclass(frozen=True)
class LayerRouting:
    """How the tokens spread over one tree of a layer."""

    name: str
    tree: int = 0
    entropy: float | None = None
    dead_share: float | None = None
    levels: tuple[Level, ...] = ()
    leaf_share: tuple[float, ...] = ()


@dataclass(frozen=True)
class LeafWords:
    """The most frequent words that arrive at one leaf."""

    layer: str
    leaf: int
    tokens: tuple[tuple[str, int], ...]
    share: float | None = None


@dataclass(frozen=True)
class Robustness:
    """The model on shifted inputs."""

    rows: tuple[RobustnessRow, ...]
    limit: int | None = None


@dataclass(frozen=True)
class Ablation:
    """The model with its routing changed in several ways."""

    rows: tuple[AblationRow, ...]
    task: str = ""
    limit: int | None = None


@dataclass(frozen=True)
class Routing:
    """Routing statistics."""

    layers: tuple[LayerRouting, ...]
    leaves: tuple[LeafWords, ...] = ()
    agreement: dict[str, Any] | None = None


@dataclass(frozen=True)
class Evaluation:
    """`eval.json`."""

    model: str = ""
    teacher: str | None = None
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    robustness: Robustness | None = None
    ablation: Ablation | None = None
    routing: Routing | None = None
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchRow:
    """The whole model's time at one size, in one runtime."""

    runtime: str
    batch: int
    length: int
    median_ms: float
    p20_ms: float | None = None
    p80_ms: float | None = None
    speedup_vs_torch: float | None = None
    amdahl_cap: float | None = None
    max_error: float | None = None

    @property
    def ours(self) -> bool:
        """Whether it computes the converted model, and not a baseline."""
        return self.runtime.startswith(OURS)


@dataclass(frozen=True)
class ProfileRow:
    """Milliseconds by part of the model, at one size, in one runtime."""

    runtime: str
    batch: int
    length: int
    ms: dict[str, float]


@dataclass(frozen=True)
class Benchmark:
    """`bench.json`."""

    rows: tuple[BenchRow, ...]
    profile: tuple[ProfileRow, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> BenchRow | None:
        """The largest speed-up of the converted model, in whatever runtime of ours."""
        ours = [row for row in self.rows if row.ours and row.speedup_vs_torch is not None]
        return max(ours, key=lambda row: row.speedup_vs_torch or 0.0, default=None)


@dataclass(frozen=True)
class SweepScore:
    """A task at one point of a sweep."""

    metric: str
    value: float | None
    ci95: tuple[float, float] | None = None
    retained: float | None = None


@dataclass(frozen=True)
class SweepRow:
    """One point of a sweep."""

    trees: int
    depth: int
    active_fraction: float
    tasks: dict[str, SweepScore]
    leaf_width: int = 0
    trunk: int = 0
    parameters_ratio: float | None = None


@dataclass(frozen=True)
class Sweep:
    """`sweep.json`."""

    rows: tuple[SweepRow, ...]
    pareto: tuple[int, ...] = ()
    model: str = ""


@dataclass(frozen=True)
class Step:
    """A line of `training.jsonl`."""

    step: int
    tokens: int | None = None
    loss: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    eval_loss: float | None = None


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
    benchmark: Benchmark | None
    sweep: Sweep | None

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
        benchmark=_document(Benchmark, folder / BENCHMARK, "fffconvert bench"),
        sweep=_document(Sweep, folder / SWEEP, "fffconvert sweep"),
    )


def _document(kind: type[Kind], path: Path, command: str) -> Kind | None:
    if not path.is_file():
        return None
    try:
        return parse(kind, json.loads(path.read_text(encoding="utf-8")), path.name)
    except (ValueError, OSError) as error:  # malformed JSON, another encoding, or FFFError
        raise _unreadable(path, error, command) from None


def _training(path: Path) -> tuple[Step, ...]:
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        # A run that is going on, or was killed, may leave its last line half written: it ends in no newline.
        return tuple(
            parse(Step, json.loads(line), f"{path.name} line {number}")
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
