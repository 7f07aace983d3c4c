"""Makers of sound: waveforms and spectrograms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fffconvert.locate.inputs.context import BATCH, LENGTH, Context, makes

FRAMES = 8 * LENGTH
"""Frames of a spectrogram: enough for three halvings."""


@makes("input_values")
def input_values(context: Context) -> Tensor:
    """A waveform [2, samples] or [2, channels, samples], or a spectrogram [2, frames, bands]."""
    bands = context.setting("num_mel_bins", part="audio")
    if bands and context.setting("frequency_stride"):
        return context.normal(BATCH, context.number("max_length", default=LENGTH), bands)
    strides = context.setting("conv_stride", "downsampling_ratios", "upsampling_ratios", part="audio")
    hop = context.number("hop_length", default=320)
    if isinstance(strides, (list, tuple)):
        hop = math.prod(strides)
    samples = LENGTH * hop + hop // 2
    if context.setting("audio_channels", part="audio") is None:
        return context.normal(BATCH, samples)
    return context.normal(BATCH, context.number("audio_channels", part="audio", default=1), samples)


@makes("input_features")
def input_features(context: Context) -> Tensor:
    """A spectrogram: [2, bands, frames] where a convolution reads the bands as channels, else [2, frames, bands]."""
    bands = context.number(
        "num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_dim", part="audio", default=80
    )
    if bands_first(context, bands):
        return context.normal(BATCH, bands, 2 * context.number("max_source_positions", part="audio", default=FRAMES // 2))
    return context.normal(BATCH, FRAMES, bands)


def bands_first(context: Context, bands: int) -> bool:
    """Whether a convolution reads the bands of a spectrogram as its channels."""
    if context.setting("input_feat_per_channel") is not None:
        return False
    return any(isinstance(m, nn.Conv1d) and m.in_channels == bands and m.groups == 1 for m in context.model.modules())


@makes("input_features_mask", "feature_attention_mask")
def frame_mask(context: Context) -> Tensor | None:
    """Nothing is padding: ones [2, frames]."""
    features = context.get("input_features")
    if features is None:
        return None
    bands = context.number("num_mel_bins", part="audio", default=80)
    frames = features.shape[-1] if bands_first(context, bands) else features.shape[1]
    return torch.ones(BATCH, frames, dtype=torch.long, device=context.device)
