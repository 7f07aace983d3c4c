"""Makers of time series."""

from __future__ import annotations

import torch
from torch import Tensor

from fffconvert.locate.inputs.context import BATCH, Context, makes


def history(context: Context) -> int:
    """Number of past time steps."""
    lags = context.setting("lags_sequence", default=[0])
    return context.number("context_length", default=16) + max(lags)


@makes("past_values")
def past_values(context: Context) -> Tensor:
    """The past: [2, steps], or [2, steps, channels] for several series at once."""
    channels = context.number("num_input_channels", "input_size", default=1)
    shape = (BATCH, history(context)) if channels == 1 else (BATCH, history(context), channels)
    return context.normal(*shape)


@makes("past_observed_mask", only_required=True)
def past_observed_mask(context: Context) -> Tensor:
    """Every value was observed: ones of the shape of the past."""
    return torch.ones_like(context.get("past_values"))


@makes("past_time_features", only_required=True)
def past_time_features(context: Context) -> Tensor:
    """Features of the time steps: [2, steps, features]."""
    return context.normal(BATCH, history(context), context.number("num_time_features", default=0) or 1)
