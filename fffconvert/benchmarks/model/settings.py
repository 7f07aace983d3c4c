"""What a benchmark of a whole model measures."""

from __future__ import annotations

from dataclasses import dataclass

from fffconvert.options import BenchOptions

EXPORTED_TREES = {"ort": "exported", "ort-int8": "exported-int8"}
"""The converted model in the same runtime, by the baseline that it is to be compared with."""


@dataclass(frozen=True, kw_only=True)
class ModelBench(BenchOptions):
    """The settings of one run.

    Attributes:
        model: A converted or deployed folder; with `depth`, any model, whose blocks are then replaced by
            random layers in memory: its speed can be known before anything is fitted.
    """

    model: str
