"""What a model can do, beside its teacher and controls, with intervals."""

from __future__ import annotations

from fffconvert.evaluation.grid import sweep
from fffconvert.evaluation.run import evaluate
from fffconvert.evaluation.tasks import TASKS

__all__ = ["TASKS", "evaluate", "sweep"]
