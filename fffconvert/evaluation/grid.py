"""A grid of conversions of one model on tasks: how quality falls as less is computed."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fffconvert import hub
from fffconvert.conversion import convert_model
from fffconvert.errors import FFFError
from fffconvert.evaluation.run import environment, evaluate
from fffconvert.evaluation.tasks import TASKS, resolve_tasks
from fffconvert.figures import figure_class
from fffconvert.fit.corpus import names_of_texts, read_texts
from fffconvert.hub.card import Totals
from fffconvert.options import ConvertOptions, SweepOptions, values_of, verb
from fffconvert.store import code, fingerprint, write_json

RESULTS, PLOT, POINTS = "sweep.json", "sweep.png", "points"
MARKERS = "osD^vP*X"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that the colour-blind can tell apart. Reference: Wong, Nature Methods 8 (2011), 441."""


@verb(SweepOptions)
def sweep(model: str, options: SweepOptions) -> dict[str, Any]:
    """Convert a model at each point of a grid of shapes and measure it, beside the original.

    Each point is written down as soon as it is measured; a stopped sweep goes on where it was.

    Args:
        model: Name of the original, which is also the teacher.

    Returns:
        `model`, `rows` (`trees`, `depth`, `leaf_width`, `trunk`, `active_fraction`, `parameters_ratio`,
        `tasks`), `pareto` (which rows no other beats in both work and the first task), `environment`.

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
    found = _earlier(output, model, settings, options.overwrite)
    output.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"model": model, "settings": settings, "rows": [], "pareto": []}
    for point in tqdm(points, desc="sweep", unit="point", disable=None):
        key = _shape(point)
        if key not in found:
            place = output / POINTS / _called(point, settings)
            found[key] = _measure(model, place, point, options)
        document["rows"] = [found[_shape(p)] for p in points if _shape(p) in found]
        document["pareto"] = pareto(document["rows"])
        document["environment"] = environment()
        write_json(output / RESULTS, document)
    shutil.rmtree(output / POINTS, ignore_errors=True) if not options.keep else None
    plot(output / PLOT, document)
    return document


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


def _shape(point: ConvertOptions | Mapping[str, Any]) -> tuple[int, ...]:
    values = point if isinstance(point, Mapping) else vars(point)
    return tuple(int(values[name]) for name in _SHAPE)


def _earlier(
    output: Path, model: str, settings: Mapping[str, Any], overwrite: bool
) -> dict[tuple[int, ...], dict[str, Any]]:
    """The points that an earlier run of the same sweep measured."""
    path = output / RESULTS
    if overwrite or not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["model"] == model and document["settings"] == dict(settings):
            return {_shape(row): row for row in document["rows"]}
    except (KeyError, TypeError, ValueError) as error:
        raise FFFError(f"{path} is no sweep; choose another `output`, or add `overwrite=True`") from error
    changed = [name for name in settings if document["settings"].get(name) != settings[name]] or ["model"]
    raise FFFError(
        f"{output} holds a sweep that differs in {', '.join(changed)}; choose another `output`, "
        "or add `overwrite=True`"
    )


def _called(point: ConvertOptions, settings: Mapping[str, Any]) -> str:
    """Name of a point's folder, of its shape and of all else that it depends on."""
    shape = f"{point.trees}x{point.depth}-leaf{point.leaf_width}-trunk{point.trunk}"
    return f"{shape}-{fingerprint(point.to_dict(), settings)[:8]}"


def _measure(model: str, folder: Path, point: ConvertOptions, options: SweepOptions) -> dict[str, Any]:
    if not (folder / "metrics.json").is_file():
        convert_model(model, point.replace(output=folder))
    blocks = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["blocks"]
    results = evaluate(folder, options.tasks, teacher=model, **options.measured)["tasks"]
    totals = Totals.of(blocks)
    if not options.keep:
        shutil.rmtree(folder)
    wanted = (
        "metric",
        "higher_is_better",
        "value",
        "ci95",
        "n",
        "teacher",
        "retained",
        "retained_ci95",
        "limit",
    )
    return {
        **_named(_shape(point)),
        "active_fraction": totals.macs_left,
        "parameters_ratio": totals.parameters / totals.parameters_before,
        "token_r2_heldout": totals.r2_median,
        "tasks": {task: {key: row[key] for key in wanted} for task, row in results.items()},
    }


def pareto(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The rows that no other beats: in the work left, or in the first task, and is no worse in the other."""
    if not rows:
        return []
    first = next(iter(rows[0]["tasks"]))
    sign = 1 if rows[0]["tasks"][first]["higher_is_better"] else -1
    places = {
        index: (row["active_fraction"], -sign * row["tasks"][first]["value"])
        for index, row in enumerate(rows)
        if row["tasks"][first]["value"] is not None
    }

    def beaten(place: tuple[float, float]) -> bool:
        return any(
            other != place and other[0] <= place[0] and other[1] <= place[1] for other in places.values()
        )

    return [index for index, place in places.items() if not beaten(place)]


def plot(path: Path, document: Mapping[str, Any]) -> None:
    """Draw the tasks against the share of the blocks' multiply-adds that is left, with 95 % intervals.

    Raises:
        FFFError: The file cannot be written.
    """
    rows = document["rows"]
    names = list(rows[0]["tasks"])
    figure = figure_class()(figsize=(6.4, 4.2 * len(names)), layout="constrained")
    kinds = sorted({(row["trees"], row["leaf_width"], row["trunk"]) for row in rows})
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        for index, kind in enumerate(kinds):
            mine = [row for row in rows if (row["trees"], row["leaf_width"], row["trunk"]) == kind]
            mine = [row for row in mine if row["tasks"][name]["value"] is not None]
            values = [row["tasks"][name]["value"] for row in mine]
            ends = [
                row["tasks"][name]["ci95"] or [value] * 2 for row, value in zip(mine, values, strict=True)
            ]
            x = [row["active_fraction"] for row in mine]
            errors = [
                [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
                [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
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
            for row, place, value in zip(mine, x, values, strict=True):
                axes.annotate(
                    f"{row['depth']}", (place, value), (4, 4), textcoords="offset points", fontsize=7
                )
        if name == names[0]:
            best = sorted(
                (rows[index] for index in document["pareto"]), key=lambda row: row["active_fraction"]
            )
            axes.plot(
                [row["active_fraction"] for row in best],
                [row["tasks"][name]["value"] for row in best],
                color="#888888",
                linewidth=1,
                zorder=0,
                label="not beaten",
            )
        teacher = rows[0]["tasks"][name]["teacher"]
        if teacher is not None:
            axes.axhline(teacher, color="#888888", linestyle="--", linewidth=1, label="original")
        axes.set(xscale="log", xlabel="multiply-adds left of the blocks' (numbers: depth)")
        limit = rows[0]["tasks"][name]["limit"]
        note = "" if limit is None else f", {limit} examples: a quick look"
        axes.set(ylabel=rows[0]["tasks"][name]["metric"], title=f"{name}{note}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise FFFError(f"cannot write {path}: {error.strerror}; choose another `output`") from error
