"""How it was made, where it was measured, and what the figures do not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from fffconvert.evaluation.ablation import Ablation
from fffconvert.evaluation.compare import TaskScore
from fffconvert.evaluation.robustness import Robustness
from fffconvert.hub.card import EXPECT, SAVINGS
from fffconvert.reporting.documents import RECIPE, Conversion
from fffconvert.reporting.page import Code, Heading, Part, Section, Table, Text


def recipe(conversions: Sequence[Conversion]) -> Section:
    """The resolved recipes, as they lie in the folders."""
    parts: list[Part] = []
    for conversion in conversions:
        if not conversion.recipe:
            continue
        if len(conversions) > 1:
            parts.append(Heading(conversion.label))
        parts.append(Text(f"As {RECIPE} in the folder has it:"))
        parts.append(Code(yaml.safe_dump(conversion.recipe, sort_keys=False).strip()))
    return Section("recipe", "Recipe", tuple(parts), "fffconvert convert MODEL --depth 11 -o DIR")


def machine(conversions: Sequence[Conversion]) -> Section:
    """Processor and versions that the figures were measured with."""
    parts: list[Part] = []
    for conversion in conversions:
        places = {
            "evaluation": conversion.evaluation.environment if conversion.evaluation else {},
            "benchmark": conversion.benchmark.machine if conversion.benchmark else {},
        }
        for what, values in places.items():
            rows = tuple(_flat(values))
            if rows:
                where = f"{conversion.label}: {what}" if len(conversions) > 1 else what
                parts.append(Table(("", where), rows, left=2))
    return Section("machine", "Machine and versions", tuple(parts), "fffconvert evaluate DIR --task sts-b")


def limits(conversions: Sequence[Conversion]) -> Section:
    """What a reader should hold against the figures."""
    lines = []
    for conversion in conversions:
        if conversion.metrics and not conversion.metrics.training:
            lines.append(f"{conversion.label}: {EXPECT}")
        if conversion.recipe and not conversion.conversion.get("calibration"):
            lines.append(
                f"{conversion.label} was calibrated on Python's own documentation, the default; on text of "
                "another domain the layers keep less. Give your own with --calibration."
            )
        if conversion.evaluation:
            limited: dict[str, TaskScore | Robustness | Ablation | None] = {
                **conversion.evaluation.tasks,
                "robustness": conversion.evaluation.robustness,
                "ablation": conversion.evaluation.ablation,
            }
            cut = [f"{name} ({part.limit:,})" for name, part in limited.items() if part and part.limit]
            if cut:
                lines.append(
                    f"{conversion.label}: a quick look, not a result, where only the first rows were read: "
                    f"{', '.join(cut)}."
                )
    lines += [
        "Confidence intervals are of the converted model's own value, over the rows of a task; they do not "
        "cover other seeds of fitting or training, nor other data.",
        SAVINGS,
        "The licence and the limits of the original model apply.",
    ]
    return Section("limits", "Limits", tuple(Text(line) for line in lines))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as pairs, names joined by blanks."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield name, " ".join(map(str, value))
        else:
            yield name, str(value)
