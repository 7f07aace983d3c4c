"""The objectives: sums over tokens, masked tokens or sentences, so that every split of a batch adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fffconvert.distillation.signals import TopLogits

SMALL = 1e-6


class Counts(NamedTuple):
    """What the sums of one optimiser step are divided by, over all its passes and processes.

    Attributes:
        tokens: Tokens that are no padding.
        targets: Positions whose predictions are compared.
        sequences: Sequences.
    """

    tokens: Tensor
    targets: Tensor
    sequences: Tensor


def relative_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of each token over its variance, summed over tokens.

    A few tokens are often a hundred times larger than the rest and would be all that is learned, though what
    follows normalises each token by itself. So the error is divided by the mean of the token's own variance
    and the geometric mean of all, which the large ones hardly move: where all are alike, by their variance.

    Args:
        student: [sequences, tokens, d]
        teacher: The same.
        mask: [sequences, tokens], 1 where it counts.
    """
    student, teacher = student.float(), teacher.float()
    size = teacher.var(-1, correction=0) * teacher.shape[-1] + SMALL
    logs = torch.stack([(size.log() * mask).sum(), mask.sum()])
    if _distributed():
        dist.all_reduce(logs)
    typical = (logs[0] / logs[1].clamp(min=1)).exp()
    weight = mask * 2 / (size + typical)
    return ((student - teacher).square().sum(-1) * weight).sum()


def attention_divergence(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Kullback-Leibler divergence of attention maps, mean over heads, summed over tokens.

    Args:
        student: [sequences, heads, tokens, tokens], each row a distribution.
        teacher: The same.
        mask: [sequences, tokens], 1 where the row of a token counts.
    """
    student, teacher = student.float().clamp(min=SMALL), teacher.float().clamp(min=SMALL)
    divergence = (teacher * (teacher.log() - student.log())).sum(-1).mean(1)
    return divergence[mask].sum()


def prediction_divergence(student: Tensor, teacher: Tensor | TopLogits, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of predictions, times the squared temperature, summed over positions.

    Of a teacher's top predictions, all others are taken together as one more.

    Args:
        student: [positions, vocabulary], logits.
        teacher: The same, or the top ones.
        temperature: Both are softened by it.
    """
    log_q = F.log_softmax(student.float() / temperature, -1)
    if isinstance(teacher, TopLogits):
        log_p = _with_rest(teacher.log_p.float())
        log_q = _with_rest(log_q.gather(1, teacher.tokens))
    else:
        log_p = F.log_softmax(teacher.float() / temperature, -1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _with_rest(log_p: Tensor) -> Tensor:
    """Append the logarithm of what the probabilities leave."""
    rest = (1 - log_p.exp().sum(1, keepdim=True)).clamp(min=SMALL)
    return torch.cat([log_p, rest.log()], 1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or squared error where there is one output; summed.

    Args:
        logits: [positions, classes]
        labels: [positions], classes or numbers.
    """
    if logits.shape[1] == 1:
        return F.mse_loss(logits[:, 0].float(), labels.float(), reduction="sum")
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def embedding_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine, summed over sentences; both [sentences, d] of length 1."""
    return (1 - (student * teacher).sum(1)).sum()


def similarity_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the cosines with all other sentences, mean over these and summed over sentences.

    With several processes the others are those of all of them.

    Args:
        student: [sentences, d], of length 1.
        teacher: The same.
    """
    all_students, all_teachers = _everywhere(student), _everywhere(teacher)
    error = (student @ all_students.T - teacher @ all_teachers.T).square()
    return error.sum() / max(1, len(all_students) - 1)


def _everywhere(x: Tensor) -> Tensor:
    """The rows of all processes, with gradients."""
    if not _distributed():
        return x
    from torch.distributed.nn.functional import all_gather  # its import warns where there is no distribution

    return torch.cat(list(all_gather(x)))  # type: ignore[no-untyped-call]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """The mean of the same objective on several layers."""
    return torch.stack(list(values)).mean()
