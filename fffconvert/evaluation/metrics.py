"""Metrics of what a model answered, and how sure they are.

A task keeps one row of numbers for each thing that it drew from its population (a pair of sentences, a
window of text): its *units*. A metric is a function of the units alone, so it can be computed anew on
resampled ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Units = NDArray[np.float64]
Interval = tuple[float, float]
RESAMPLES = 1000
LEVEL = (2.5, 97.5)
"""Percentiles between which 95 % of the resampled values lie."""


@dataclass(frozen=True)
class Metric:
    """A figure of a task.

    Attributes:
        name: As in the results.
        compute: Of the units [n, columns].
        higher_is_better: Whether a larger value is the better one.
    """

    name: str
    compute: Callable[[Units], float]
    higher_is_better: bool = True


def bootstrap(compute: Callable[[Units], float], units: Units, *, resamples: int | None = None) -> Interval:
    """95 % percentile interval of a figure, over units drawn with replacement.

    Draws on which the figure is undefined (a correlation of constants) do not count.

    Args:
        compute: The figure.
        units: [n, columns]
        resamples: How many times to draw; `RESAMPLES` by default.

    Returns:
        Lower and upper end; both NaN if there are fewer than two units, or it is undefined on all draws.
    """
    if len(units) < 2:
        return math.nan, math.nan
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            (np.arange(len(units)),),
            lambda rows: compute(units[rows]),
            vectorized=False,
            n_resamples=resamples or RESAMPLES,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).bootstrap_distribution
        if np.isnan(drawn).all():
            return math.nan, math.nan
        low, high = np.nanpercentile(drawn, LEVEL)
    return float(low), float(high)


def interval(
    metric: Metric, units: Sequence[Units], figure: Callable[[Metric, Sequence[Units]], float] | None = None
) -> Interval | None:
    """95 % interval of a figure of one or several models, over the same resampled units of all.

    Args:
        metric: The metric.
        units: [n, columns] of each model, row by row of the same thing.
        figure: Of the metric and the models' units; the first model's metric by default.

    Returns:
        Lower and upper end; None where it is undefined.
    """
    borders = np.cumsum([part.shape[1] for part in units])[:-1]

    def compute(drawn: Units) -> float:
        parts = np.split(drawn, borders, axis=1)
        return metric.compute(parts[0]) if figure is None else figure(metric, parts)

    low, high = bootstrap(compute, np.concatenate(units, axis=1))
    return None if math.isnan(low) else (low, high)


def over_seeds(metric: Callable[[Units, Units], float]) -> Callable[[Units], float]:
    """Make of a function of truth and prediction one of units whose first column is the truth.

    Each further column holds the predictions of one seed; the result is the median over the seeds.
    """
    return lambda units: float(np.median([metric(units[:, 0], column) for column in units[:, 1:].T]))


def _spearman(truth: Units, found: Units) -> float:
    # scipy's spearmanr takes ten times as long, a thousand times for each interval.
    return _pearson(stats.rankdata(truth), stats.rankdata(found))


def _pearson(truth: Units, found: Units) -> float:
    one, other = truth - truth.mean(), found - found.mean()
    norm = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / norm if norm else math.nan


def _accuracy(truth: Units, found: Units) -> float:
    return float((truth == found).mean())


def _f1(truth: Units, found: Units) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, found, zero_division=0.0))


def _matthews(truth: Units, found: Units) -> float:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(truth) == 0 and np.ptp(found) == 0:  # as scikit-learn has it, without its warning
        return 0.0
    return float(matthews_corrcoef(truth, found))


def ratio(top: int, bottom: int) -> Callable[[Units], float]:
    """The sum of one column over the sum of another."""
    return lambda units: float(units[:, top].sum() / max(units[:, bottom].sum(), 1e-300))


def perplexity(loss: int, count: int) -> Callable[[Units], float]:
    """The exponential of summed negative log-likelihoods (nats) over the number of tokens."""
    mean = ratio(loss, count)
    return lambda units: math.exp(min(mean(units), 700.0))


SPEARMAN = Metric("spearman", over_seeds(_spearman))
PEARSON = Metric("pearson", over_seeds(_pearson))
ACCURACY = Metric("accuracy", over_seeds(_accuracy))
F1 = Metric("f1", over_seeds(_f1))
MATTHEWS = Metric("matthews", over_seeds(_matthews))
