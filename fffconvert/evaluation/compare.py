"""One task on all compared models: figures with intervals, what was retained or recovered, and verdicts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fffconvert.errors import FFFError
from fffconvert.evaluation.metrics import Metric, Units, interval
from fffconvert.evaluation.subject import Subject
from fffconvert.evaluation.tasks import Options, Task
from fffconvert.evaluation.verdicts import verdict
from fffconvert.records import plain
from fffconvert.store import digest, once


@dataclass(frozen=True)
class TaskScore:
    """A model on one task, beside its teacher and the controls.

    Intervals are of 95 %. Further keys of a row are facts of the task and values of other controls.

    Attributes:
        metric: Its name.
        value: The model's; None where it is undefined.
        ci95: Its interval.
        n: Number of examples.
        teacher: The teacher's value; None without one, as are the next three.
        ablated: Value of the model without its blocks.
        dense: Value with dense blocks of the same active width.
        random_routing: Value with hyperplanes drawn at random.
        retained: Model over teacher; of a loss, teacher over model.
        retained_ci95: Its interval.
        recovered: Of what deleting the blocks takes away, the share that the model has.
        recovered_ci95: Its interval.
        recovered_unclear: Deleting the blocks costs nothing that shows, so that a share of it means nothing.
        limit: Examples at most, for a quick look.
        higher_is_better: Whether a larger value is the better one.
        verdicts: "better", "worse" or "undecided" against each control.
        ci95_of: Intervals of the teacher and the controls.
        source: Where the data came from.
        seconds: Time that the model took.
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
    retained_ci95: tuple[float, float] | None = None
    recovered: float | None = None
    recovered_ci95: tuple[float, float] | None = None
    recovered_unclear: bool = False
    limit: int | None = None
    higher_is_better: bool = True
    verdicts: dict[str, str] = field(default_factory=dict)
    ci95_of: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    source: str = ""
    seconds: float | None = None


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
    """The row of a task in the results: a `TaskScore` in plain values, with what else there is to say.

    Args:
        task: The task.
        source: Where its data came from.
        results: What `measure` gave, by role: "model", and where given "teacher" and controls.
        limit: Of the call.
    """
    units = {role: np.array(result["units"], dtype=np.float64) for role, result in results.items()}
    metric, own = task.metrics[0], units["model"]
    values = {role: _number(metric.compute(found)) for role, found in units.items()}
    ends = {role: interval(metric, [found]) for role, found in units.items()}
    beside = {role: value for role, value in values.items() if role != "model"}
    score = TaskScore(
        metric.name,
        values["model"],
        ends.pop("model"),
        len(own),
        **_shares(task, units),
        limit=limit,
        higher_is_better=metric.higher_is_better,
        verdicts={role: verdict(metric, own, units[role]) for role in beside if role != "teacher"},
        ci95_of=ends,
        source=source,
        seconds=results["model"]["seconds"],
    )
    document: dict[str, Any] = plain(score) | beside | results["model"]["facts"]
    if task.seeded:
        columns = range(1, own.shape[1])
        document["seeds"] = [_number(metric.compute(own[:, [0, column]])) for column in columns]
    if others := task.metrics[1:]:
        document["others"] = {
            other.name: {"value": _number(other.compute(own)), "ci95": interval(other, [own])}
            for other in others
        }
    return document


def _shares(task: Task, units: Mapping[str, Units]) -> dict[str, Any]:
    """What the model retained and recovered, where there is something to compare with."""
    if "teacher" not in units or task.beside_teacher:
        return {}
    metric, pair = task.metrics[0], [units["model"], units["teacher"]]
    found: dict[str, Any] = {
        "retained": _number(retained(metric, pair)),
        "retained_ci95": interval(metric, pair, retained),
    }
    if "ablated" in units:
        three = [*pair, units["ablated"]]
        found["recovered"] = _number(recovered(metric, three))
        found["recovered_ci95"] = interval(metric, three, recovered)
        found["recovered_unclear"] = verdict(metric, *three[1:]) != "better"
    return found


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
