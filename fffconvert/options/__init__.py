"""The options of each verb, written once for Python, the command line and YAML. Nothing here needs torch."""

from __future__ import annotations

from fffconvert.options.bench import BenchLayerOptions, BenchOptions
from fffconvert.options.common import TextSource
from fffconvert.options.convert import ConvertOptions
from fffconvert.options.deploy import DeployOptions, ExportOptions
from fffconvert.options.distill import DistillOptions
from fffconvert.options.estimate import EstimateOptions
from fffconvert.options.evaluate import EvaluateOptions, SweepOptions
from fffconvert.options.fields import values_of, verb
from fffconvert.options.plan import PlanOptions
from fffconvert.options.report import ReportOptions

__all__ = [
    "BenchLayerOptions",
    "BenchOptions",
    "ConvertOptions",
    "DeployOptions",
    "DistillOptions",
    "EstimateOptions",
    "EvaluateOptions",
    "ExportOptions",
    "PlanOptions",
    "ReportOptions",
    "SweepOptions",
    "TextSource",
    "values_of",
    "verb",
]
