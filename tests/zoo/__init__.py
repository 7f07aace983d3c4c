"""Models with known answers, written from their sources and independent of fffconvert."""

from __future__ import annotations

from zoo.architectures import ARCHITECTURES
from zoo.case import Case, Expected, run
from zoo.handwritten import HANDWRITTEN

__all__ = ["ARCHITECTURES", "HANDWRITTEN", "Case", "Expected", "run"]
