"""The estimate over a range: depths, contexts, batches, or models."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fffconvert.errors import FFFError
from fffconvert.estimation import roofline
from fffconvert.estimation.report import Estimate
from fffconvert.options.estimate import Sweep
from fffconvert.planning import MAX_DEPTH

CONTEXTS = tuple(2**k for k in range(5, 18))
BATCHES = tuple(2**k for k in range(13))
SIZES = (
    "all-minilm-l6-v2",
    "bert-base",
    "gpt3-125m",
    "bert-large",
    "gpt3-350m",
    "gpt3-760m",
    "gpt3-1.3b",
    "gpt3-2.7b",
    "gpt3-6.7b",
    "llama-3-8b",
    "gpt3-13b",
    "llama-3-70b",
    "gpt3-175b",
    "llama-3.1-405b",
)
"""Models of the sweep over models, where none are named."""


def sweep(models: Sequence[str], over: Sweep, make: Callable[[str], Estimate]) -> list[dict[str, Any]]:
    """One row per model and value.

    Args:
        models: Names of models.
        over: What changes.
        make: Estimates one model.

    Returns:
        Rows of equal keys: model, the value, and the figures that depend on it.
    """
    return [
        row
        for model in tqdm(models, desc="estimate", unit="model", disable=None)
        for row in _rows(make(model), over)
    ]


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows of a sweep.

    Raises:
        FFFError: The file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise FFFError(f"cannot write {path}: {error.strerror}; choose another file") from None


def _rows(estimate: Estimate, over: Sweep) -> Iterator[dict[str, Any]]:
    if over is Sweep.DEPTH:
        for depth in range(MAX_DEPTH + 1):
            specs = tuple(dataclasses.replace(spec, depth=depth) for spec in estimate.specs)
            yield _row(dataclasses.replace(estimate, specs=specs))
    elif over is Sweep.CONTEXT:
        for context in CONTEXTS:
            yield _row(dataclasses.replace(estimate, work=estimate.at_context(context)))
    elif over is Sweep.BATCH:
        for batch in BATCHES:
            work = dataclasses.replace(estimate.work, batch=batch)
            yield _row(dataclasses.replace(estimate, work=work))
    else:
        yield _row(estimate)


def _row(estimate: Estimate) -> dict[str, Any]:
    work, anatomy = estimate.work, estimate.anatomy
    tokens = anatomy.tokens(work)
    moved, moved_after = (
        sum(roofline.moved_bytes(one, work, estimate.dtype).values()) for one in (anatomy, estimate.converted)
    )
    row = {
        "context": work.context,
        "batch": work.batch,
        "phase": work.phase.value,
        **estimate.figures(),
        "macs_per_token": sum(anatomy.macs(work).values()) / tokens,
        "bytes_per_token": moved / tokens,
        "converted_bytes_per_token": moved_after / tokens,
    }
    if estimate.machine is not None and (times := estimate.durations()):
        before, after = times
        row |= {
            "hardware": estimate.machine.name,
            "latency_ms": before.seconds * 1e3,
            "converted_latency_ms": after.seconds * 1e3,
            "roofline_speedup": before.seconds / after.seconds,
        }
    return row
