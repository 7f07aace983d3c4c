"""Makers of sound: waveforms and spectrograms."""

from __future__ import annotations

import inspect
import math

from torch import Tensor, nn

from fffconvert.location.inputs.context import LENGTH, Context, makes
from fffconvert.location.inputs.placeholders import features_method

FRAMES = 8 * LENGTH
"""Frames of a spectrogram: enough for three halvings."""


@makes("input_values")
def input_values(context: Context) -> Tensor | None:
    """The waveform or spectrogram, unless forward takes it under another name."""
    return None if "inputs" in context.required else waveform(context)


def waveform(context: Context) -> Tensor:
    """A waveform [2, samples], for codecs [2, channels, samples], or a spectrogram [2, frames, bands]."""
    if context.setting("frequency_stride"):
        return context.normal(context.batch, context.number("max_length", default=FRAMES), bands(context))
    hop = context.number("hop_length", default=320)
    strides = context.setting("conv_stride", "downsampling_ratios", "upsampling_ratios", part="audio")
    if isinstance(strides, (list, tuple)):
        hop = math.prod(strides)
    samples = (2 * LENGTH + 1) * hop
    if context.setting("downsampling_ratios", "upsampling_ratios", part="audio") is None:
        return context.normal(context.batch, samples)
    return context.normal(context.batch, context.number("audio_channels", part="audio", default=1), samples)


@makes("input_features")
def input_features(context: Context) -> Tensor | None:
    """A spectrogram: [2, frames, bands], or [2, bands, frames] where convolutions read bands as channels."""
    if getattr(context.config, "audio_config", ...) is None or "inputs" in context.required:
        return None
    if "decoder_input_ids" in context.parameters and "input_ids" in context.required:
        return None  # a translator takes either speech or text
    count = bands(context)
    if context.setting("spec_size", part="audio"):
        return context.normal(context.batch, 1, FRAMES, count)
    if bands_first(context):
        return context.normal(context.batch, count, frames(context))
    return context.normal(context.batch, frames(context), count)


def bands(context: Context) -> int:
    """Number of bands of a spectrogram."""
    names = ("feature_projection_input_dim", "input_feat_per_channel", "input_dim", "num_mel_bins")
    return context.number(*names, part="audio", default=80)


def frames(context: Context) -> int:
    """Number of frames of a spectrogram: what the encoder's positions or windows ask for, if they do."""
    positions = context.number("max_source_positions", part="audio", default=0)
    if positions and bands_first(context):
        return 2 * positions
    window = 2 * context.number("n_window", part="audio", default=1)
    return -(-FRAMES // window) * window


def bands_first(context: Context) -> bool:
    """Whether a convolution reads the bands of a spectrogram as its channels."""
    if context.setting("input_feat_per_channel") is not None:
        return False
    if context.setting("n_window", part="audio") is not None:  # two-dimensional convolutions over windows
        return True
    count = bands(context)
    return any(
        isinstance(m, nn.Conv1d) and m.in_channels == count and m.groups == 1 for m in context.model.modules()
    )


@makes("input_features_mask", "feature_attention_mask")
def frame_mask(context: Context) -> Tensor | None:
    """Nothing is padding: ones [2, frames]; left out where the mask is one of features, not of frames."""
    method = features_method(context, "audio")
    known = inspect.signature(method).parameters if method else context.parameters
    if context.get("input_features") is None or not {"input_features_mask", "feature_attention_mask"} & {
        *known
    }:
        return None
    return context.constant(1, context.batch, frames(context))


@makes("is_longer")
def is_longer(context: Context) -> Tensor:
    """No sound was cut: [2, 1]."""
    return context.constant(0, context.batch, 1).bool()


@makes("spectrogram", only_required=True)
def spectrogram(context: Context) -> Tensor:
    """The input of a vocoder: [2, frames, bands]."""
    count = context.number("model_in_dim", "num_mel_bins", "mel_dim", default=80)
    return context.normal(context.batch, LENGTH, count)


@makes("inputs", only_required=True)
def sound_or_states(context: Context) -> Tensor | None:
    """What the encoder of a pair of models takes, or hidden states: [2, samples] or [2, 13, d_model]."""
    if {"input_ids", "pixel_values"} & {*context.parameters}:
        return None  # another name for these
    if hasattr(context.config, "encoder"):
        return waveform(context)
    return context.normal(context.batch, LENGTH, context.number("d_model", "hidden_size", default=1))
