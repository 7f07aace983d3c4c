"""Makers of time series and of episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from fffconvert.location.inputs.context import LENGTH, Context, makes


def history(context: Context) -> int:
    """Number of past time steps."""
    lags = context.setting("lags_sequence", default=[0])
    return context.number("context_length", default=LENGTH) + int(max(lags))


@makes("past_values")
def past_values(context: Context) -> Tensor:
    """The past: [2, steps], or [2, steps, channels] for several series at once."""
    several = context.setting("num_input_channels")
    if several is None and context.number("input_size", default=1) == 1:
        return context.normal(context.batch, history(context))
    return context.normal(context.batch, history(context), several or context.number("input_size", default=1))


@makes("past_observed_mask", only_required=True)
def past_observed_mask(context: Context) -> Tensor:
    """Every value was observed: ones of the shape of the past."""
    return torch.ones_like(context.get("past_values"))


@makes("past_values_padding", only_required=True)
def past_values_padding(context: Context) -> Tensor:
    """Nothing is padding: zeros of the shape of the past."""
    return torch.zeros_like(context.get("past_values"), dtype=torch.long)


@makes("freq", only_required=True)
def frequency(context: Context) -> Tensor:
    """Every series is of the highest frequency: [2, 1]."""
    return context.constant(0, context.batch, 1)


@makes("past_time_features", only_required=True)
def past_time_features(context: Context) -> Tensor:
    """Features of the past time steps: [2, steps, features]."""
    return context.normal(context.batch, history(context), context.number("num_time_features", default=0))


@makes("future_time_features")
def future_time_features(context: Context) -> Tensor:
    """Features of the time steps to predict: [2, steps, features]."""
    steps = context.number("prediction_length", default=1)
    return context.normal(context.batch, steps, context.number("num_time_features", default=0))


@makes("future_values")
def future_values(context: Context) -> Tensor | None:
    """What a decoder is fed in training: [2, steps], or [2, steps, series]."""
    if "future_time_features" not in context.parameters:
        return None
    size = context.number("input_size", default=1)
    steps = context.number("prediction_length", default=1)
    return context.normal(context.batch, steps) if size == 1 else context.normal(context.batch, steps, size)


@makes("states")
def states(context: Context) -> Tensor:
    """States of an episode: [2, steps, state]."""
    return context.normal(context.batch, LENGTH, context.number("state_dim", default=1))


@makes("actions")
def actions(context: Context) -> Tensor:
    """Actions of an episode: [2, steps, action]."""
    return context.normal(context.batch, LENGTH, context.number("act_dim", default=1))


@makes("rewards", "returns_to_go")
def rewards(context: Context) -> Tensor:
    """Rewards of an episode: [2, steps, 1]."""
    return context.normal(context.batch, LENGTH, 1)


@makes("timesteps")
def timesteps(context: Context) -> Tensor:
    """Time steps of an episode: [2, steps]."""
    return torch.arange(LENGTH, device=context.device).expand(context.batch, -1)
