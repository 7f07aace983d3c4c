"""One task on all compared models: figures with intervals, what was retained or recovered, and verdicts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fffconvert.errors import FFFError
from fffconvert.evaluation.metrics import Metric, Units, interval
from fffconvert.evaluation.subject import Subject
from fffconvert.evaluation.tasks import Options, Task
from fffconvert.evaluation.verdicts import verdict
from fffconvert.store import digest, once

CONTROLS = ("ablated", "dense", "random_routing")
"""Controls that every row states, null where they were not given."""


def measure(
    task: Task, data: Any, key: str, subject: Subject, teacher: Subject | None, options: Options
) -> dict[str, Any]:
    """What one model did on a task, from the store if it was measured before.

    Args:
        task: The task.
        data: What it read.
        key: Of the task, the data and the options.
        subject: The model.
        teacher: Its teacher.
        options: Of the call.

    Returns:
        `units`, `facts`, `seconds`.
    """
    beside = teacher.key if task.beside_teacher and teacher is not None else None

    def run(seed: int) -> dict[str, Any]:
        return measure_as(task, data, subject, dataclasses.replace(options, seed=seed), teacher)

    if not task.seeded:
        return once("evaluations", digest(key, subject.key, beside), lambda: run(0))
    parts = [
        once("evaluations", digest(key, subject.key, options.epochs, seed), lambda seed=seed: run(seed))  # type: ignore[misc]
        for seed in range(options.seeds)
    ]
    # The truth stands in the first column, the answers of each seed in one of the others.
    answers = [
        unit + [more["units"][index][1] for more in parts[1:]] for index, unit in enumerate(parts[0]["units"])
    ]
    return {**parts[0], "units": answers, "seconds": round(sum(part["seconds"] for part in parts), 1)}


def measure_as(
    task: Task, data: Any, subject: Subject, options: Options, teacher: Subject | None = None
) -> dict[str, Any]:
    """What a model does on a task as it is now: `units`, `facts`, `seconds`.

    Raises:
        FFFError: It gives values that are not finite.
    """
    started = time.monotonic()
    units, facts = task.measure(subject, teacher, data, options)
    if not np.isfinite(units).all():
        raise FFFError(f"task {task.name}: {subject.name} gives values that are not finite")
    return {"units": units.tolist(), "facts": facts, "seconds": round(time.monotonic() - started, 1)}


def figure(metric: Metric, result: Mapping[str, Any]) -> dict[str, Any]:
    """A metric of what was measured: `metric`, `value`, `ci95`, `n`."""
    units = np.array(result["units"], dtype=np.float64)
    value, ends = _number(metric.compute(units)), interval(metric, [units])
    return {"metric": metric.name, "value": value, "ci95": ends, "n": len(units)}


def row(
    task: Task, source: str, results: Mapping[str, Mapping[str, Any]], limit: int | None
) -> dict[str, Any]:
    """The row of a task in the results.

    Args:
        task: The task.
        source: Where its data came from.
        results: What `measure` gave, by role: "model", and where given "teacher" and controls.
        limit: Of the call.
    """
    units = {role: np.array(result["units"], dtype=np.float64) for role, result in results.items()}
    metric, own = task.metrics[0], units["model"]
    figures = {role: _number(metric.compute(found)) for role, found in units.items()}
    intervals = {role: interval(metric, [found]) for role, found in units.items()}
    controls = {role: figures[role] for role in units if role not in ("model", "teacher")}
    document: dict[str, Any] = {
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "value": figures["model"],
        "ci95": intervals["model"],
        "n": len(own),
        "teacher": figures.get("teacher"),
        **dict.fromkeys(CONTROLS),
        **controls,
        "verdicts": {role: verdict(metric, own, units[role]) for role in controls},
        "ci95_of": {role: found for role, found in intervals.items() if role != "model"},
        "retained": None,
        "retained_ci95": None,
        "recovered": None,
        "recovered_ci95": None,
        "recovered_unclear": False,
        "limit": limit,
        "source": source,
        "seconds": results["model"]["seconds"],
        **results["model"]["facts"],
    }
    if task.seeded:
        columns = range(1, own.shape[1])
        document["seeds"] = [_number(metric.compute(own[:, [0, column]])) for column in columns]
    others = task.metrics[1:]
    if others:
        document["others"] = {
            other.name: {"value": _number(other.compute(own)), "ci95": interval(other, [own])}
            for other in others
        }
    if "teacher" in units and not task.beside_teacher:
        pair = [own, units["teacher"]]
        document["retained"] = _number(retained(metric, pair))
        document["retained_ci95"] = interval(metric, pair, retained)
        if "ablated" in units:
            three = [*pair, units["ablated"]]
            document["recovered"] = _number(recovered(metric, three))
            document["recovered_ci95"] = interval(metric, three, recovered)
            # Where deleting all blocks costs nothing that shows, a share of it means nothing.
            document["recovered_unclear"] = verdict(metric, *three[1:]) != "better"
    return document


def retained(metric: Metric, units: Sequence[Units]) -> float:
    """Model over teacher; of a loss, teacher over model, so that more is always better."""
    own, teacher = (metric.compute(part) for part in units)
    return share_retained(metric, own, teacher)


def share_retained(metric: Metric, own: float, teacher: float) -> float:
    """The same of the two figures; NaN where there is nothing to divide by."""
    top, bottom = (own, teacher) if metric.higher_is_better else (teacher, own)
    return top / bottom if bottom else math.nan


def recovered(metric: Metric, units: Sequence[Units]) -> float:
    """Of what deleting the blocks takes away, the share that the model has: 1 for the teacher."""
    own, teacher, ablated = (metric.compute(part) for part in units)
    return (own - ablated) / (teacher - ablated) if teacher != ablated else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
