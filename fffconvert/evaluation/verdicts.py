"""Whether one model is better than another on a task: the one decision that tables, pages and cards state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fffconvert.evaluation.metrics import Metric, Units, interval

Verdict = Literal["better", "worse", "undecided"]


def verdict(metric: Metric, own: Units, other: Units) -> Verdict:
    """Decide whether a model is better than another, by the 95 % interval of the difference.

    Both are computed on the same resampled units, so that what is hard for both counts for neither.

    Args:
        metric: What they are judged by.
        own: [n, columns], of the model.
        other: The same units, of the other.

    Returns:
        Better or worse where the interval lies on one side of 0; undecided elsewhere, and where the
        difference is undefined.
    """
    ends = interval(metric, [own, other], advantage)
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "undecided"
    return "better" if ends[0] > 0 else "worse"


def advantage(metric: Metric, units: Sequence[Units]) -> float:
    """By how much the first model is better than the second, in the metric's own unit."""
    own, other = (metric.compute(part) for part in units)
    return own - other if metric.higher_is_better else other - own
