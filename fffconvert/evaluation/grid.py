"""A grid of conversions of one model on tasks: how quality falls as less is computed."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fffconvert import hub
from fffconvert.conversion import convert_model
from fffconvert.errors import FFFError
from fffconvert.evaluation.compare import TaskScore
from fffconvert.evaluation.results import Evaluation
from fffconvert.evaluation.run import environment, evaluate
from fffconvert.evaluation.tasks import TASKS, resolve_tasks
from fffconvert.figures import figure_class
from fffconvert.fit.corpus import names_of_texts, read_texts
from fffconvert.hub.metrics import Metrics, Totals
from fffconvert.options import ConvertOptions, SweepOptions, values_of, verb
from fffconvert.records import load, plain, read
from fffconvert.store import code, fingerprint, write_json

RESULTS, PLOT, POINTS = "sweep.json", "sweep.png", "points"
MARKERS = "osD^vP*X"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that the colour-blind can tell apart. Reference: Wong, Nature Methods 8 (2011), 441."""


@dataclass(frozen=True)
class SweepRow:
    """One point of a sweep.

    Attributes:
        depth: Depth of the trees.
        trees: Number of trees.
        leaf_width: Neurons of the leaf blocks.
        trunk: Rank of the trunk.
        active_fraction: Share of the blocks' multiply-adds that is left.
        parameters_ratio: Stored parameters over those of the blocks.
        token_r2_heldout: Median R² per token.
        tasks: What was measured.
    """

    depth: int
    trees: int
    active_fraction: float
    tasks: dict[str, TaskScore]
    leaf_width: int = 0
    trunk: int = 0
    parameters_ratio: float | None = None
    token_r2_heldout: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """What tells it from others."""
        return self.depth, self.trees, self.leaf_width, self.trunk


@dataclass(frozen=True)
class SweepResult:
    """`sweep.json`; `pareto` has the numbers of the rows that no other beats."""

    rows: tuple[SweepRow, ...] = ()
    pareto: tuple[int, ...] = ()
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


@verb(SweepOptions)
def sweep(model: str, options: SweepOptions) -> SweepResult:
    """Convert a model at each point of a grid of shapes and measure it, beside the original.

    Each point is written down as soon as it is measured; a stopped sweep goes on where it was.

    Args:
        model: Name of the original, which is also the teacher.

    Raises:
        FFFError: Bad input, or the folder holds another sweep.
    """
    figure_class()
    output, points = Path(options.output).expanduser(), points_of(options)
    for name in resolve_tasks(options.tasks, list(TASKS)):
        if TASKS[name].beside_teacher:
            raise FFFError(f"task {name} states no figure of the original to compare with; take another")
    common = {name: value for name, value in points[0].to_dict().items() if name not in _SHAPE}
    text = (
        None
        if options.calibration is None
        else read_texts(options.calibration, options.text_columns, options.lines)
    )
    settings = {
        "calibration": names_of_texts(options.calibration),
        "limit": options.limit,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "tasks": list(options.tasks),
        **common,
        "weights": fingerprint(hub.load(model, trust_remote_code=options.trust_remote_code).model),
        "text": fingerprint(text, [Path(path) for path in options.text]),
        "code": code(),
    }
    found = _earlier(output, model, plain(settings), options.overwrite)
    output.mkdir(parents=True, exist_ok=True)
    result = SweepResult()
    for point in tqdm(points, desc="sweep", unit="point", disable=None):
        if _shape(point) not in found:
            place = output / POINTS / _called(point, settings)
            found[_shape(point)] = _measure(model, place, point, options)
        rows = tuple(found[_shape(p)] for p in points if _shape(p) in found)
        result = SweepResult(rows, tuple(pareto(rows)), model, settings, environment())
        write_json(output / RESULTS, result)
    shutil.rmtree(output / POINTS, ignore_errors=True) if not options.keep else None
    plot(output / PLOT, result)
    return result


_SHAPE = ("depth", "trees", "leaf_width", "trunk")


def points_of(options: SweepOptions) -> list[ConvertOptions]:
    """How each point of a grid is converted, the cheapest first.

    Raises:
        FFFError: A number is out of range.
    """
    common = {"calibration", "tokens", "refine", "text_columns", "lines", "trust_remote_code"}
    same = {name: value for name, value in values_of(options).items() if name in common}
    shapes = dict.fromkeys(itertools.product(*(options.grid[name] for name in _SHAPE)))
    found = [ConvertOptions(**same, **_named(shape)) for shape in shapes]
    return sorted(found, key=lambda p: p.trunk + p.trees * ((p.depth or 0) + 1 + p.leaf_width))


def _named(shape: Sequence[int]) -> dict[str, Any]:
    return dict(zip(_SHAPE, shape, strict=True))


def _shape(point: ConvertOptions) -> tuple[int, ...]:
    return tuple(getattr(point, name) for name in _SHAPE)


def _earlier(
    output: Path, model: str, settings: Mapping[str, Any], overwrite: bool
) -> dict[tuple[int, ...], SweepRow]:
    """The points that an earlier run of the same sweep measured."""
    path = output / RESULTS
    if overwrite or not path.is_file():
        return {}
    try:
        earlier = load(SweepResult, path)
    except ValueError as error:
        raise FFFError(f"{path} is no sweep; choose another `output`, or add `overwrite=True`") from error
    if earlier.model == model and earlier.settings == settings:
        return {row.shape: row for row in earlier.rows}
    changed = [name for name in settings if earlier.settings.get(name) != settings[name]] or ["model"]
    raise FFFError(
        f"{output} holds a sweep that differs in {', '.join(changed)}; choose another `output`, "
        "or add `overwrite=True`"
    )


def _called(point: ConvertOptions, settings: Mapping[str, Any]) -> str:
    """Name of a point's folder, of its shape and of all else that it depends on."""
    shape = f"{point.trees}x{point.depth}-leaf{point.leaf_width}-trunk{point.trunk}"
    return f"{shape}-{fingerprint(point.to_dict(), settings)[:8]}"


def _measure(model: str, folder: Path, point: ConvertOptions, options: SweepOptions) -> SweepRow:
    if not (folder / "metrics.json").is_file():
        convert_model(model, point.replace(output=folder))
    totals = Totals.of(load(Metrics, folder / "metrics.json").blocks)
    results = evaluate(folder, options.tasks, teacher=model, **options.measured)
    if not options.keep:
        shutil.rmtree(folder)
    return SweepRow(
        **_named(_shape(point)),
        active_fraction=totals.macs_left,
        tasks=read(Evaluation, results, "", "program").tasks,
        parameters_ratio=totals.parameters / totals.parameters_before,
        token_r2_heldout=totals.r2_median,
    )


def pareto(rows: Sequence[SweepRow]) -> list[int]:
    """The rows that no other beats: in the work left, or in the first task, and is no worse in the other."""
    places = {}
    for index, row in enumerate(rows):
        score = next(iter(row.tasks.values()))
        if score.value is not None:
            places[index] = row.active_fraction, -score.value if score.higher_is_better else score.value

    def beaten(place: tuple[float, float]) -> bool:
        return any(
            other != place and other[0] <= place[0] and other[1] <= place[1] for other in places.values()
        )

    return [index for index, place in places.items() if not beaten(place)]


def plot(path: Path, sweep: SweepResult) -> None:
    """Draw the tasks against the share of the blocks' multiply-adds that is left, with 95 % intervals.

    Raises:
        FFFError: The file cannot be written.
    """
    names = list(sweep.rows[0].tasks)
    figure = figure_class()(figsize=(6.4, 4.2 * len(names)), layout="constrained")
    kinds = sorted({row.shape[1:] for row in sweep.rows})
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        first = sweep.rows[0].tasks[name]
        for index, kind in enumerate(kinds):
            mine = [(row, row.tasks[name]) for row in sweep.rows if row.shape[1:] == kind]
            points = [
                (row, score.value, *(score.ci95 or [score.value] * 2))
                for row, score in mine
                if score.value is not None
            ]
            x, values = [row.active_fraction for row, *_ in points], [value for _, value, *_ in points]
            errors = [
                [max(0.0, value - low) for _, value, low, _ in points],
                [max(0.0, high - value) for _, value, _, high in points],
            ]
            trees, leaf, trunk = kind
            label = f"{trees} tree{'s' * (trees > 1)}" + f", leaves of {leaf}" * bool(leaf)
            axes.errorbar(
                x,
                values,
                errors,
                fmt=MARKERS[index % len(MARKERS)],
                color=COLOURS[index % len(COLOURS)],
                capsize=3,
                label=label + f", trunk {trunk}" * bool(trunk),
            )
            for row, value, *_ in points:
                place = (row.active_fraction, value)
                axes.annotate(f"{row.depth}", place, (4, 4), textcoords="offset points", fontsize=7)
        if name == names[0]:
            best = sorted((sweep.rows[index] for index in sweep.pareto), key=lambda row: row.active_fraction)
            axes.plot(
                [row.active_fraction for row in best],
                [row.tasks[name].value for row in best],
                color="#888888",
                linewidth=1,
                zorder=0,
                label="not beaten",
            )
        if first.teacher is not None:
            axes.axhline(first.teacher, color="#888888", linestyle="--", linewidth=1, label="original")
        axes.set(xscale="log", xlabel="multiply-adds left of the blocks' (numbers: depth)")
        note = "" if first.limit is None else f", {first.limit} examples: a quick look"
        axes.set(ylabel=first.metric, title=f"{name}{note}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise FFFError(f"cannot write {path}: {error.strerror}; choose another `output`") from error
