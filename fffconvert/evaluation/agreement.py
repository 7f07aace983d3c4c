"""How far a model agrees with its teacher on any text: embeddings, and predictions of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fffconvert.evaluation.batches import embed_tokens, equal_lengths
from fffconvert.evaluation.language import logits_of
from fffconvert.evaluation.metrics import Units
from fffconvert.fit.masking import masked_tokens
from fffconvert.forward import evaluation


def embeddings(model: nn.Module, teacher: nn.Module, sequences: Sequence[Sequence[int]]) -> Units:
    """Compare the embeddings of texts.

    Args:
        model: The model.
        teacher: The other; may be of another width.
        sequences: Token ids of the texts.

    Returns:
        Of each text the cosine between the two models' embeddings, and each model's cosine between this text
        and the next (the teacher's first): [sequences, 3].
    """
    own, other = (embed_tokens(each, sequences) for each in (model, teacher))
    nearby = [torch.cosine_similarity(each, each.roll(-1, 0)) for each in (other, own)]
    return torch.stack([torch.cosine_similarity(own, other), *nearby], 1).double().numpy()


def predictions(
    model: nn.Module,
    teacher: nn.Module,
    sequences: Sequence[Sequence[int]],
    masked: tuple[int, Sequence[int]] | None,
) -> Units:
    """Compare predicted tokens: the next ones, or those behind 15 % masks.

    Args:
        model: A language model.
        teacher: The other.
        sequences: Token ids.
        masked: Id of the mask, and ids that are not masked; None for causal models.

    Returns:
        Of each sequence the summed KL divergence (nats) from the teacher, how often both think the same token
        the most likely, and the number of predictions: [sequences, 3].
    """
    generator = torch.Generator().manual_seed(0)
    units = np.zeros((len(sequences), 3))
    with evaluation(model), evaluation(teacher):
        for part, ids in equal_lengths(sequences, "agreement", 1024):
            chosen = torch.ones_like(ids, dtype=torch.bool)
            if masked is not None:
                ids, chosen = masked_tokens(ids, *masked, generator)
            row = chosen.nonzero()[:, 0]
            own, other = (logits_of(each, ids)[chosen].log_softmax(-1) for each in (model, teacher))
            divergence = (other.exp() * (other - own)).sum(-1)
            columns: tuple[Tensor, ...] = (
                divergence,
                own.argmax(-1) == other.argmax(-1),
                torch.ones_like(divergence),
            )
            for column, value in enumerate(columns):
                units[part, column] = torch.zeros(len(part)).double().index_add_(0, row, value.double())
    return units
