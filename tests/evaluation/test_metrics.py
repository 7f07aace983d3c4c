"""Metrics against scipy and scikit-learn on random data, the bootstrap against scipy's and by coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fffconvert.evaluation import metrics
from fffconvert.evaluation.metrics import Metric, bootstrap, over_seeds, perplexity, ratio

sklearn = pytest.importorskip("sklearn.metrics")
RNG = np.random.default_rng(0)


def columns(*values):
    return np.column_stack(values).astype(np.float64)


def test_correlations_are_scipys():
    truth, found = RNG.normal(size=50).round(1), RNG.normal(size=50)
    assert metrics.SPEARMAN.compute(columns(truth, found)) == pytest.approx(stats.spearmanr(truth, found)[0])
    assert metrics.PEARSON.compute(columns(truth, found)) == pytest.approx(np.corrcoef(truth, found)[0, 1])


def test_classification_metrics_are_those_of_a_table_of_confusions():
    truth, found = RNG.integers(0, 2, 200), RNG.integers(0, 2, 200)
    tp, tn = int((truth & found).sum()), int(((1 - truth) & (1 - found)).sum())
    fp, fn = int(((1 - truth) & found).sum()), int((truth & (1 - found)).sum())
    units = columns(truth, found)
    assert metrics.ACCURACY.compute(units) == pytest.approx((tp + tn) / 200)
    assert metrics.F1.compute(units) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    bottom = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics.MATTHEWS.compute(units) == pytest.approx((tp * tn - fp * fn) / bottom)
    assert metrics.ACCURACY.compute(units) == pytest.approx(sklearn.accuracy_score(truth, found))


def test_several_seeds_count_by_their_median():
    truth = np.array([0, 1, 0, 1])
    seeds = [np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0]), np.array([0, 1, 0, 0])]
    assert metrics.ACCURACY.compute(columns(truth, *seeds)) == 0.75


def test_an_undefined_correlation_is_no_number():
    assert math.isnan(metrics.SPEARMAN.compute(columns([1, 2, 3], [1, 1, 1])))
    assert math.isnan(metrics.PEARSON.compute(columns([1, 1, 1], [1, 2, 3])))


def test_perplexity_is_of_the_mean_over_tokens_and_not_over_windows():
    units = columns([10.0, 1.0], [10, 1])
    assert perplexity(0, 1)(units) == pytest.approx(math.e)
    assert ratio(0, 1)(columns([3, 1], [1, 3])) == 1.0


def test_the_interval_is_scipys():
    values = RNG.gamma(2.0, size=80)
    low, high = bootstrap(lambda units: float(units[:, 0].mean()), values[:, None], resamples=2000)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", random_state=np.random.default_rng(1), n_resamples=9999
    ).confidence_interval
    spread = values.std() / math.sqrt(80)
    assert low == pytest.approx(expected.low, abs=0.15 * spread)
    assert high == pytest.approx(expected.high, abs=0.15 * spread)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for _ in range(100):
        low, high = bootstrap(lambda u: float(u.mean()), RNG.normal(size=(60, 1)), resamples=200)
        covered += low <= 0 <= high
    assert 86 <= covered <= 100


def test_draws_on_which_a_figure_is_undefined_do_not_count():
    metric = Metric("spearman", over_seeds(metrics._spearman))
    low, high = bootstrap(metric.compute, columns([1, 2, 3], [1, 3, 2]))
    assert -1 <= low <= high <= 1
    assert all(math.isnan(end) for end in bootstrap(metric.compute, columns([1], [1])))
