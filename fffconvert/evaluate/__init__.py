"""What a model can do, beside its teacher and controls, with intervals."""

from __future__ import annotations

from fffconvert.evaluate.run import evaluate
from fffconvert.evaluate.tasks import TASKS

__all__ = ["TASKS", "evaluate"]
