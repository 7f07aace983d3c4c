"""How many placeholder tokens an image, a video or a sound takes in a text."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fffconvert.locate.inputs.context import BATCH, Context

MODALITIES = {
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
    "audio": ("input_features", "input_values"),
}


def placeholder_id(context: Context, modality: str) -> int | None:
    """The token that stands for (a part of) an image, a video or a sound, if the model has one."""
    token = context.setting(f"{modality}_token_id", f"{modality}_token_index")
    return token if isinstance(token, int) else None


def placeholders(context: Context) -> Iterator[tuple[int, int]]:
    """For every modality that is merged into the text: its placeholder and how many of them one example needs.

    The model itself is asked: they are as many as the features it makes of the example.
    """
    for modality, contents in MODALITIES.items():
        token = placeholder_id(context, modality)
        features = getattr(context.model, f"get_{modality}_features", None)
        given = any(context.get(name) is not None for name in contents)
        if token is None or features is None or not given:
            continue
        names = inspect.signature(features).parameters
        arguments = {name: context.get(name) for name in names if name not in ("input_ids", "attention_mask")}
        training = context.model.training
        context.model.eval()
        with torch.no_grad():
            made = features(**{name: value for name, value in arguments.items() if value is not None})
        context.model.train(training)
        yield token, rows(made) // BATCH


def rows(features: Any) -> int:
    """Number of feature vectors in what a model's `get_..._features` returned."""
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    if hasattr(features, "pooler_output"):
        pooled = features.pooler_output
        return rows(features.last_hidden_state if pooled is None else pooled)
    return sum(rows(part) for part in features)
