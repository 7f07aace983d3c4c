"""Which of the tokens that a block or a model deals with are padding, by the masks of the model's inputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def mask_for(model: nn.Module, module: str, batch: Mapping[str, Any]) -> Tensor | None:
    """The mask of the tokens that reach a module: the decoder's own in the decoder of an encoder-decoder.

    Args:
        model: The model.
        module: Name of one of its modules; "" for the model itself, whose output is the decoder's.
        batch: Keyword arguments of a forward pass.

    Returns:
        [sequences, tokens], true where there is no padding; None where nothing is padding.
    """
    name = "attention_mask"
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        find: Any = getattr(model, "get_decoder", lambda: None)
        decoder, own = find(), model.get_submodule(module)
        if own is model or (decoder is not None and any(part is own for part in decoder.modules())):
            name = "decoder_attention_mask"
    mask = batch.get(name)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask.bool().all()):
        return None
    return mask.bool()


def without_padding(x: Tensor, mask: Tensor | None, what: str) -> Tensor:
    """The vectors of the tokens that are no padding.

    Args:
        x: [..., d]: a vector for each token, as [sequences, tokens, d], [tokens, sequences, d] or flat; or
            one for each sequence, of which none is padding.
        mask: [sequences, tokens], true at tokens; None where nothing is padding.
        what: What they are of, for the warning that comes where the mask is of another shape.

    Returns:
        [tokens, d]
    """
    rows = x.shape[:-1]
    if mask is None or rows == mask.shape[:1]:
        return x.reshape(-1, x.shape[-1])
    mask = mask.to(x.device)
    if rows == mask.shape:
        return x[mask]
    if rows == mask.T.shape:
        return x[mask.T]
    if rows == (mask.numel(),):
        return x[mask.flatten()]
    warnings.warn(
        f"{what} has vectors {list(rows)}, its mask is {list(mask.shape)}, so padding counts as tokens; "
        "give sequences of one length at a time, without padding",
        stacklevel=2,
    )
    return x.reshape(-1, x.shape[-1])
