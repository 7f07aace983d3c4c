"""Makers of images and video."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor

from fffconvert.location.inputs.context import Context, makes
from fffconvert.location.inputs.placeholders import features_method


def image_shape(context: Context, part: str = "vision") -> tuple[int, int, int]:
    """Channels, height and width of an image, by the config or the part of it with this name."""
    channels = context.number(
        "num_channels", "in_channels", "in_chans", "image_channels", part=part, default=3
    )
    size = context.setting("image_size", "img_size", "input_size", part=part, default=any_side(context))
    if takes_sizes(context) and not pinpoint(context):
        size = any_side(context)
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else next(iter(size.values()))
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return channels, height, width


def any_side(context: Context) -> int:
    """Height and width of an image for models that take any.

    Some whole patches, and enough cells of eight pixels for a detector that picks its queries among them.
    """
    patch = patch_size(context) * merged(context)
    queries = context.number("num_queries", default=0)
    return max(4 * patch, 32 * math.ceil(math.sqrt(queries) / 4))


def merged(context: Context) -> int:
    """How many patches become one feature, per side."""
    return context.number("spatial_merge_size", "merge_size", part="vision", default=1)


def patch_grid(context: Context) -> tuple[int, int, int]:
    """Frames, rows and columns of patches of an image for models that take images of any size."""
    return 1, 2 * merged(context), 3 * merged(context)


@makes("pixel_values", "image")
def pixel_values(context: Context) -> Tensor | None:
    """Images: [2, channels, height, width], or in the form that the other parameters of forward imply."""
    if getattr(context.config, "vision_config", ...) is None:
        return None
    if "image_grid_thw" in context.parameters or "grid_thw" in context.parameters:
        return patches(context)
    channels, height, width = image_shape(context)
    if "spatial_shapes" in context.parameters:
        return context.normal(context.batch, side(context) ** 2, channels * patch_size(context) ** 2)
    return context.normal(context.batch, *stack(context), channels, height, width)


def stack(context: Context) -> tuple[int, ...]:
    """Axes between examples and channels: the images, tiles or frames of an example."""
    if "aspect_ratio_ids" in context.parameters:
        return 1, tiles(context)
    if "pixel_attention_mask" in context.parameters:
        return (1,)
    if context.has_head("KeypointMatching"):
        return (2,)
    if takes_video(context):
        return (frames(context),)
    if takes_sizes(context) and pinpoint(context):
        _, height, width = image_shape(context)
        return (1 + (pinpoint(context)[0] // height) * (pinpoint(context)[1] // width),)
    return ()


def takes_video(context: Context) -> bool:
    """Whether images come as frames of a video."""
    only_video = "video" in context.modalities and "image" not in context.modalities
    return only_video or context.setting("num_frames", part="vision") is not None


@makes("pixel_values_videos")
def pixel_values_videos(context: Context) -> Tensor | None:
    """Video, where forward takes no images: [2, frames, channels, height, width]."""
    if "pixel_values" in context.parameters:
        return None
    return context.normal(context.batch, frames(context), *image_shape(context))


def frames(context: Context) -> int:
    """Number of frames of a video."""
    return context.number("num_frames", "frames_per_clip", part="vision", default=4)


def patch_size(context: Context) -> int:
    """Height and width of a patch."""
    return context.number("patch_size", part="vision", default=16)


def side(context: Context) -> int:
    """Rows and columns of patches of a square image."""
    positions = context.number("num_patches", part="vision", default=0)
    return int(positions**0.5) or max(image_shape(context)[1] // patch_size(context), 1)


def patches(context: Context) -> Tensor:
    """Two images cut into patches: [patches, channels * frames * patch * patch]."""
    time, height, width = patch_grid(context)
    patch = patch_size(context)
    depth = context.number("temporal_patch_size", part="vision", default=1)
    return context.normal(context.batch * time * height * width, image_shape(context)[0] * depth * patch**2)


@makes("image_grid_thw", "grid_thw")
def grids(context: Context) -> Tensor:
    """Frames, rows and columns of patches of each image: [2, 3]."""
    return context.numbers([patch_grid(context)] * context.batch)


def pinpoint(context: Context) -> list[int]:
    """The smallest resolution for which the model cuts an image into tiles."""
    points = context.setting("image_grid_pinpoints", part="vision", default=[])
    return min(points, key=lambda point: point[0] * point[1], default=[])


@makes("image_sizes")
def image_sizes(context: Context) -> Tensor | None:
    """Height and width of each image, where the model asks for them: [2, 2]."""
    if not takes_sizes(context):
        return None
    return context.numbers([pinpoint(context) or image_shape(context)[1:]] * context.batch)


def takes_sizes(context: Context) -> bool:
    """Whether images of any size come with their sizes, or cut into tiles."""
    method = features_method(context, "image")
    parameter = inspect.signature(method).parameters.get("image_sizes") if method else None
    required = parameter is not None and parameter.default is parameter.empty
    return required or ("image_sizes" in context.parameters and bool(pinpoint(context)))


@makes("spatial_shapes")
def spatial_shapes(context: Context) -> Tensor:
    """Rows and columns of patches of each image: [2, 2]."""
    return context.numbers([[side(context)] * 2] * context.batch)


@makes("pixel_attention_mask")
def pixel_attention_mask(context: Context) -> Tensor:
    """Every patch or pixel counts: ones [2, patches] or [2, images, height, width]."""
    shape = context.get("pixel_values").shape
    flat = "spatial_shapes" in context.parameters
    return context.constant(1, *(shape[:2] if flat else (context.batch, 1, *shape[-2:]))).bool()


@makes("image_merge_sizes", "merge_sizes")
def merge_sizes(context: Context) -> Tensor:
    """How many patches of each image are merged, per side: [2]."""
    return context.constant(merged(context), context.batch)


@makes("high_res_pixel_values")
def high_resolution(context: Context) -> Tensor:
    """The images at the second size that the model takes: [2, channels, height, width]."""
    return context.normal(context.batch, *image_shape(context, "high_res"))


@makes("flattened_patches")
def flattened_patches(context: Context) -> Tensor:
    """Patches behind their row and column: [2, patches, 2 + channels * patch * patch]."""
    cells = context.numbers([[row, column] for row in range(1, 4) for column in range(1, 5)])
    plain = image_shape(context)[0] * patch_size(context) ** 2
    width = context.number("patch_embed_hidden_size", part="vision", default=plain)
    pixels = context.normal(context.batch, len(cells), width)
    return torch.cat([cells.expand(context.batch, -1, -1).to(pixels), pixels], dim=-1)


def tiles(context: Context) -> int:
    """Number of tiles into which an image is cut."""
    return context.number("max_num_tiles", part="vision", default=1)


@makes("aspect_ratio_ids")
def aspect_ratio_ids(context: Context) -> Tensor:
    """Every image is of the first aspect ratio: [2, 1]."""
    return context.constant(1, context.batch, 1)


@makes("aspect_ratio_mask")
def aspect_ratio_mask(context: Context) -> Tensor:
    """Every tile counts: [2, 1, tiles]."""
    return context.constant(1, context.batch, 1, tiles(context))


@makes("visual_feats")
def visual_feats(context: Context) -> Tensor:
    """Features of the regions of an image: [2, regions, features]."""
    return context.normal(context.batch, 5, context.number("visual_feat_dim", default=1))


@makes("visual_pos")
def visual_pos(context: Context) -> Tensor:
    """Boxes of the regions of an image: [2, regions, 4]."""
    return context.normal(context.batch, 5, context.number("visual_pos_dim", default=4))
