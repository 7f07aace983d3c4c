"""A control of a conversion, made from the conversion's folder.

It consists of FFF layers with ordinary specifications, so it saves, loads and trains like a conversion, and
the same recipe makes all of them comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert import hub, surgery
from fffconvert.controls.ablated import ablated_layer
from fffconvert.controls.dense import dense_layer
from fffconvert.controls.kinds import Control
from fffconvert.controls.random_routing import randomly_routed
from fffconvert.controls.replacing import replace_each
from fffconvert.conversion import prepare
from fffconvert.errors import FFFError
from fffconvert.fit.neurons import neurons_of
from fffconvert.hub.output import RECIPE, read_conversion
from fffconvert.location import FFNSite
from fffconvert.options import ConvertOptions, TextSource
from fffconvert.tree import FFFLayer

TOKENS = 30_000
"""Calibration tokens at most; a control has far less to fit than a conversion."""


def make_control(folder: str | Path, control: Control) -> hub.Loaded:
    """Make the control of a converted model: its original with other layers in the same places.

    Args:
        folder: What `fffconvert convert` wrote.
        control: Which.

    Returns:
        Model and tokenizer, not saved yet.

    Raises:
        FFFError: The folder is no conversion, or its original is gone.
    """
    recipe = read_conversion(folder)
    base = hub.load(str(recipe["model"]), revision=recipe.get("revision"))
    if control is Control.ORIGINAL:
        return base
    converted = hub.load(str(folder)).model
    options = ConvertOptions.from_dict(
        recipe,
        tokens=min(recipe.get("tokens", TOKENS), TOKENS),
        calibration=[TextSource(source) for source in recipe.get("calibration") or ()] or None,
        tokenizer=base.tokenizer,
    )
    prepared = prepare(base.model, options)
    layers = surgery.layers_of(converted)
    bar = tqdm(total=len(prepared.sites), desc=control.value, unit="block", disable=None)

    def made_for(site: FFNSite, x: Tensor) -> FFFLayer:
        layer = _layer_at(site, layers, converted)
        made = control_layer(site, layer, control, x)
        made.spec = replace(made.spec, feature_axis=layer.spec.feature_axis)
        bar.update()
        return made

    with bar:
        replace_each(base.model, prepared.sites, prepared.batches, made_for)
    hub.mark_converted(base.model, str(recipe["model"]))
    return base


@torch.no_grad()
def control_layer(site: FFNSite, layer: FFFLayer, control: Control, x: Tensor) -> FFFLayer:
    """The control of one layer.

    Args:
        site: The block.
        layer: The conversion's layer in its place.
        control: Any but the original.
        x: [tokens, d_model], what the block gets.
    """
    if control is Control.RANDOM_ROUTING:
        return randomly_routed(layer, x)
    y = site.dense().to("cpu", torch.float32)(x)
    if control is Control.ABLATED:
        return ablated_layer(layer.spec, y)
    return dense_layer(x, y, neurons_of(site), layer.spec.active_width)


def _layer_at(site: FFNSite, layers: Mapping[str, surgery.Placed], converted: nn.Module) -> FFFLayer:
    """The conversion's layer in the place of a block of the original."""
    for name in surgery.names_of(site.name, converted):
        if name in layers:
            return layers[name].layer
    raise FFFError(
        f"the conversion has no layer in the place of block {site.name}; expected its {RECIPE} to name the "
        "blocks that it has; convert the model again"
    )
