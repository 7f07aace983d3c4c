"""`eval.json`: what it holds, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fffconvert.errors import FFFError
from fffconvert.evaluation.ablation import Ablation
from fffconvert.evaluation.compare import TaskScore
from fffconvert.evaluation.robustness import Robustness
from fffconvert.evaluation.routing import Routing
from fffconvert.store import write_json

RESULTS = "eval.json"
SECTIONS = ("robustness", "ablation", "routing")
"""What is measured of routing, each a part of the results of its own."""


@dataclass(frozen=True)
class Evaluation:
    """`eval.json`; rows of tasks have further keys, see `fffconvert.evaluation.compare.row`."""

    model: str = ""
    teacher: str | None = None
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    robustness: Robustness | None = None
    ablation: Ablation | None = None
    routing: Routing | None = None
    environment: dict[str, Any] = field(default_factory=dict)


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Write results into a file, merged with what is there, task by task, atomically.

    A quick look (`limit`) never takes the place of what was measured on all examples.

    Raises:
        FFFError: The file cannot be written, or holds something else.
    """
    earlier: dict[str, Any] = {}
    try:
        if path.is_file():
            earlier = json.loads(path.read_text(encoding="utf-8"))
        tasks = dict(earlier.get("tasks", {}))
        tasks |= {name: new for name, new in document["tasks"].items() if _counts(new, tasks.get(name))}
        sections = [name for name in SECTIONS if name in document]
        kept = {name: earlier[name] for name in sections if not _counts(document[name], earlier.get(name))}
    except (AttributeError, TypeError, ValueError) as error:
        raise FFFError(f"{path} is no file of results; move it away") from error
    write_json(path, {**earlier, **document, **kept, "tasks": tasks})


def _counts(new: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> bool:
    """Whether a result may take the place of an earlier one."""
    return earlier is None or new["limit"] is None or earlier.get("limit") is not None
