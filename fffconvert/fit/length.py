"""How long a sequence a model and its tokenizer take."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

UNLIMITED = 1 << 30


def positions(model: nn.Module) -> int:
    """The tokens that a model has positions for; `UNLIMITED` where its config names no limit.

    RoBERTa and its kin count positions from behind the padding's index, so that their tables of
    `max_position_embeddings` rows hold fewer: that shows in a table of so many rows that has such an index.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return UNLIMITED
    find: Any = getattr(model, "get_input_embeddings", lambda: None)
    words = getattr(find(), "weight", None)
    taken = [
        module.padding_idx + 1
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is not words
        if module.num_embeddings == limit and module.padding_idx is not None
    ]
    return limit - max(taken, default=0)


def longest(model: nn.Module, tokenizer: Any, wanted: int, *, warn: bool = False) -> int:
    """The longest sequence, up to a wanted number of tokens, that a model and its tokenizer take.

    Args:
        model: Any model.
        tokenizer: Its tokenizer; None for none.
        wanted: Tokens.
        warn: Warn where it is less than wanted.
    """
    most = min(positions(model), int(getattr(tokenizer, "model_max_length", UNLIMITED)))
    if warn and most < wanted:
        warnings.warn(
            f"length {wanted} is more than {type(model).__name__} takes; it goes on with {most} tokens",
            stacklevel=3,
        )
    return min(wanted, most)
