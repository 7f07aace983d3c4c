"""How many placeholder tokens an image, a video or a sound takes in a text."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fffconvert.errors import FFFError
from fffconvert.location.inputs.context import Context

MODALITIES = {
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
    "audio": ("input_features", "input_values"),
}


def placeholder_id(context: Context, modality: str) -> int | None:
    """The token that stands for (a part of) an image, a video or a sound, if the model has one."""
    token = context.setting(f"{modality}_token_id", f"{modality}_token_index")
    return token if isinstance(token, int) else None


def features_method(context: Context, modality: str) -> Any:
    """The method that makes a modality's features, of the model or of one inside it, if there is one."""
    name = f"get_{modality}_features"
    return next((getattr(m, name) for m in context.model.modules() if hasattr(m, name)), None)


def placeholder_runs(context: Context) -> Iterator[list[tuple[int, int]]]:
    """For every modality merged into the text: the special tokens of one example, each with its count.

    The model itself is asked how many placeholders it needs: as many as the features it makes. One that has
    no method for that expands a single placeholder. Marks of start and end stand around them.
    """
    for modality, contents in MODALITIES.items():
        token = placeholder_id(context, modality)
        if token is None or all(context.get(name) is None for name in contents):
            continue
        method = features_method(context, modality)
        run = [(token, count_features(context, method) if method else 1)]
        marks = [
            context.setting(f"{modality}_{edge}_token_id", f"vision_{edge}_token_id")
            for edge in ("start", "end")
        ]
        before, after = ([(mark, 1)] if isinstance(mark, int) and mark != token else [] for mark in marks)
        yield [*before, *run, *after]


def count_features(context: Context, method: Any) -> int:
    """Number of feature vectors that a model makes of one example.

    Raises:
        FFFError: The method does not take the inputs made for it.
    """
    names = inspect.signature(method).parameters
    arguments = {name: context.get(name) for name in names if name not in ("input_ids", "attention_mask")}
    modes = {module: module.training for module in context.model.modules()}
    context.model.eval()
    try:
        with torch.no_grad():
            features = method(**{name: value for name, value in arguments.items() if value is not None})
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        kind = type(context.model).__name__
        raise FFFError(
            f"{method.__name__} of {kind} refuses the inputs guessed for it ({reason}); pass example_inputs"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    return rows(features) // context.batch


def rows(features: Any) -> int:
    """Number of feature vectors in what a model's `get_..._features` returned."""
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    if hasattr(features, "pooler_output"):
        pooled = features.pooler_output
        return rows(features.last_hidden_state if pooled is None else pooled)
    return sum(rows(part) for part in features)
