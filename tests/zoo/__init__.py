"""Models with known answers, written from their sources and independent of fffconvert."""

from __future__ import annotations

from zoo.architectures import ARCHITECTURES
from zoo.case import Case, Expected, run

__all__ = ["ARCHITECTURES", "Case", "Expected", "run"]
