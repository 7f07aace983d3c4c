"""What fast feedforward layers would bring to any model, from its config alone.

A small run without weights is read as formulas (`record`, `dissect`, `anatomy`), blocks become trees
(`conversion`), and the formulas give multiply-adds, bytes, memory, and seconds on a machine (`roofline`).
"""

from __future__ import annotations

from fffconvert.estimation.anatomy import Anatomy, Part
from fffconvert.estimation.machines import Hardware
from fffconvert.estimation.report import Estimate, estimate
from fffconvert.estimation.workload import Workload
from fffconvert.options.estimate import Phase

__all__ = ["Anatomy", "Estimate", "Hardware", "Part", "Phase", "Workload", "estimate"]
