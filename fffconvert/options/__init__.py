"""The options of each verb, written once for Python, the command line and YAML. Nothing here needs torch."""

from __future__ import annotations

from fffconvert.options.common import TextSource
from fffconvert.options.convert import ConvertOptions
from fffconvert.options.fields import values_of, verb
from fffconvert.options.plan import PlanOptions

__all__ = ["ConvertOptions", "PlanOptions", "TextSource", "values_of", "verb"]
