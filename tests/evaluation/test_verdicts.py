"""The one decision on better or worse: against chance, against scipy's test of pairs, for losses too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from fffconvert.evaluation.compare import row
from fffconvert.evaluation.metrics import ACCURACY, SPEARMAN, Metric, perplexity
from fffconvert.evaluation.tasks import TASKS
from fffconvert.evaluation.verdicts import advantage, verdict

LOSS = Metric("perplexity", perplexity(0, 1), higher_is_better=False)


def answers(right: int, of: int = 40) -> np.ndarray:
    return np.array([[1, float(n < right)] for n in range(of)])


def test_which_way_is_better_is_the_metrics():
    assert advantage(ACCURACY, [answers(9, 10), answers(5, 10)]) == pytest.approx(0.4)
    backwards = dataclasses.replace(ACCURACY, higher_is_better=False)
    assert advantage(backwards, [answers(9, 10), answers(5, 10)]) == pytest.approx(-0.4)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [(36, 20, "better"), (20, 36, "worse"), (30, 30, "undecided"), (31, 30, "undecided")],
)
def test_a_verdict_needs_more_than_a_larger_figure(own: int, other: int, expected: str):
    assert verdict(ACCURACY, answers(own), answers(other)) == expected


def test_what_is_hard_for_both_counts_for_neither():
    """Two losses that vary far more between windows than between models: only pairs can tell them apart."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(1, 9, 60)
    own = np.stack([hard, np.ones(60)], 1)
    other = np.stack([hard + rng.normal(0.1, 0.05, 60), np.ones(60)], 1)
    assert stats.ttest_rel(other[:, 0], own[:, 0]).pvalue < 1e-6
    assert stats.ttest_ind(other[:, 0], own[:, 0]).pvalue > 0.5
    assert verdict(LOSS, own, other) == "better"
    assert verdict(LOSS, other, own) == "worse"


def test_noise_decides_as_rarely_as_the_level_says():
    rng = np.random.default_rng(1)
    decided = 0
    for _ in range(200):
        own, other = (np.stack([rng.uniform(1, 9, 60), np.ones(60)], 1) for _ in range(2))
        decided += verdict(LOSS, own, other) != "undecided"
    assert stats.binomtest(decided, 200, 0.05).pvalue > 1e-3


def test_what_is_undefined_is_undecided():
    constant = np.ones((20, 2))
    assert verdict(SPEARMAN, constant, constant) == "undecided"
    assert verdict(ACCURACY, answers(1, 1), answers(0, 1)) == "undecided"


def test_each_control_of_a_task_has_its_verdict():
    results = {
        role: {"units": answers(right).tolist(), "facts": {}, "seconds": 0.0}
        for role, right in {"model": 30, "teacher": 40, "ablated": 10, "dense": 39, "other": 31}.items()
    }
    found = row(TASKS["rte"], "", results, None)
    assert found["verdicts"] == {"ablated": "better", "dense": "worse", "other": "undecided"}
