"""The fit report: conversions without end-to-end training, beside the controls that they must beat."""

from __future__ import annotations

from fffconvert.fitreport.report import SECTIONS, fit_report

__all__ = ["SECTIONS", "fit_report"]
