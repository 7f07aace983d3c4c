"""Objectives: their values against torch's own, and that a batch may be split."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fffconvert.distillation import objectives
from fffconvert.distillation.recipe import Pooling
from fffconvert.distillation.signals import TopLogits, pooled


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_relative_error_is_the_error_over_the_variance_where_tokens_are_alike():
    teacher = F.normalize(torch.randn(3, 5, 8) - 0.0, dim=-1)
    teacher = teacher - teacher.mean(-1, keepdim=True)
    teacher = F.normalize(teacher, dim=-1) * 4
    student, mask = teacher + torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    expected = (student - teacher).square().sum() / 16
    torch.testing.assert_close(objectives.relative_error(student, teacher, mask), expected, rtol=1e-4, atol=0)


def test_a_giant_token_does_not_drown_the_others():
    teacher, mask = torch.randn(1, 100, 8), torch.ones(1, 100, dtype=torch.bool)
    student = teacher + 0.1 * torch.randn(1, 100, 8)
    usual = objectives.relative_error(student, teacher, mask)
    giant = teacher.clone()
    giant[0, 0] *= 1e4
    moved = student.clone()
    moved[0, 0] *= 1e4
    assert float(objectives.relative_error(moved, giant, mask)) == pytest.approx(float(usual), rel=0.2)


def test_padding_counts_nowhere():
    student, teacher = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 3:] = False
    other = student.clone()
    other[~mask] = 1e3
    for loss in (objectives.relative_error,):
        torch.testing.assert_close(loss(student, teacher, mask), loss(other, teacher, mask))
    maps = [torch.softmax(torch.randn(2, 2, 6, 6), -1) for _ in range(2)]
    one = objectives.attention_divergence(*maps, mask)
    maps[0][1, :, 3:] = 0.5
    torch.testing.assert_close(objectives.attention_divergence(*maps, mask), one)


def test_prediction_divergence_is_that_of_torch():
    student, teacher = torch.randn(7, 11), torch.randn(7, 11)
    p, log_q = torch.softmax(teacher / 2, -1), torch.log_softmax(student / 2, -1)
    expected = 4 * F.kl_div(log_q, p, reduction="sum")
    torch.testing.assert_close(objectives.prediction_divergence(student, teacher, 2.0), expected)
    assert float(objectives.prediction_divergence(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-5)


def test_top_predictions_bound_the_divergence_from_below_and_all_of_them_give_it():
    student, teacher = torch.randn(7, 11), 3 * torch.randn(7, 11)
    whole = objectives.prediction_divergence(student, teacher, 1.0)
    parts = []
    for k in (1, 4, 8, 10):
        log_p, tokens = torch.log_softmax(teacher, -1).topk(k, 1)
        parts.append(float(objectives.prediction_divergence(student, TopLogits(tokens, log_p), 1.0)))
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(float(whole), rel=1e-3)


def test_labels_are_classes_or_numbers():
    logits, classes = torch.randn(5, 3), torch.randint(3, (5,))
    torch.testing.assert_close(
        objectives.cross_entropy(logits, classes), F.cross_entropy(logits, classes, reduction="sum")
    )
    numbers = torch.randn(5)
    torch.testing.assert_close(
        objectives.cross_entropy(logits[:, :1], numbers), (logits[:, 0] - numbers).square().sum()
    )


def test_embedding_objectives_vanish_for_equal_embeddings_and_any_rotation_keeps_similarities():
    embedding = F.normalize(torch.randn(6, 4), dim=-1)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert float(objectives.embedding_distance(embedding, embedding)) == pytest.approx(0, abs=1e-5)
    assert float(objectives.embedding_distance(embedding, -embedding)) == pytest.approx(12)
    assert float(objectives.similarity_error(embedding @ rotation, embedding)) == pytest.approx(0, abs=1e-5)
    other = F.normalize(torch.randn(6, 4), dim=-1)
    expected = (other @ other.T - embedding @ embedding.T).square().sum() / 5
    torch.testing.assert_close(objectives.similarity_error(other, embedding), expected)


def test_pooling():
    state, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = {
        Pooling.MEAN: torch.stack([state[0].mean(0), state[1, :2].mean(0)]),
        Pooling.CLS: state[:, 0],
        Pooling.LAST: torch.stack([state[0, 3], state[1, 1]]),
    }
    for pooling, value in expected.items():
        torch.testing.assert_close(pooled(state, mask, pooling), F.normalize(value, dim=-1))
