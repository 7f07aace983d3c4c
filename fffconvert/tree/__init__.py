"""The fast feedforward layer."""

from __future__ import annotations

from fffconvert.tree.layer import FFFLayer
from fffconvert.tree.routing import TrainingRouting, expectation

__all__ = ["FFFLayer", "TrainingRouting", "expectation"]
