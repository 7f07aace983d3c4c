"""One page about a converted model: what was converted, what was retained, against whom, and on what."""

from __future__ import annotations

from fffconvert.reporting.writing import Report, report

__all__ = ["Report", "report"]
