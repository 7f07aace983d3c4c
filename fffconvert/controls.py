"""What a conversion is held against, as FFF layers with ordinary specifications.

They save, load and train like a conversion, so that the same recipe makes all of them comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert import hub, surgery
from fffconvert.convert import prepare
from fffconvert.errors import FFFError, first_line
from fffconvert.fit import read_corpus
from fffconvert.fit.leaves import choose_neurons
from fffconvert.fit.moments import token_weights
from fffconvert.fit.neurons import neurons_of
from fffconvert.fit.stream import ActivationStream
from fffconvert.hub.output import RECIPE
from fffconvert.locate import FFNSite
from fffconvert.plan import FFFSpec
from fffconvert.recipe import Recipe
from fffconvert.tree import FFFLayer

TOKENS = 30_000
"""Calibration tokens at most; a control has far less to fit than a conversion."""
OFF = -1.0
"""Logit of a node that must not decide anything: every token goes left."""


class Control(str, Enum):
    """What stands in the place of each block."""

    DELETED = "deleted"
    """Its mean output: one trained bias."""
    DENSE = "dense"
    """A dense block of the conversion's active width, begun from the original's best neurons."""
    RANDOM_ROUTING = "random-routing"
    """The converted layer with hyperplanes drawn at random, through the middle of what comes there."""
    ORIGINAL = "original"
    """The block itself."""


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
    options = {name: value for name, value in recipe.items() if name in Recipe.__dataclass_fields__}
    options["tokens"] = min(options.get("tokens", TOKENS), TOKENS)
    sources, columns = recipe.get("calibration") or [], recipe.get("text_columns") or ()
    texts = read_corpus(sources, columns) if sources else None
    prepared = prepare(base.model, Recipe(**options), texts, base.tokenizer)
    layers = surgery.layers_of(converted)
    stream = ActivationStream(base.model, prepared.sites, prepared.batches)
    for site in tqdm(prepared.sites, desc=control.value, unit="block", disable=None):
        x, layer = torch.cat(stream.inputs(site)), _layer_at(site, layers, converted)
        with torch.no_grad():
            made = _control_layer(site, layer, control, x)
        made.spec = replace(made.spec, feature_axis=layer.spec.feature_axis)
        surgery.replace(base.model, {site: made})
    hub.mark_converted(base.model, str(recipe["model"]))
    return base


def read_conversion(folder: str | Path) -> dict[str, Any]:
    """The conversion's recipe in a folder of ours, with what a distillation added to it.

    Raises:
        FFFError: There is none.
    """
    path = Path(folder, RECIPE)
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FFFError(f"{folder} is no conversion: {first_line(error)}; see fffconvert convert") from error
    if not isinstance(recipe, dict) or "model" not in recipe:
        raise FFFError(f"{path} names no model; expected what fffconvert convert writes")
    return recipe


def _layer_at(site: FFNSite, layers: Mapping[str, surgery.Placed], converted: nn.Module) -> FFFLayer:
    """The conversion's layer in the place of a block of the original."""
    for name in surgery.names_of(site.name, converted):
        if name in layers:
            return layers[name].layer
    raise FFFError(
        f"the conversion has no layer in the place of block {site.name}; expected its {RECIPE} to name the "
        "blocks that it has; convert the model again"
    )


def frozen_parameters(control: Control | None, spec: FFFSpec) -> tuple[str, ...]:
    """Parameters of a layer that are not trained: thresholds, which have no gradient, and a control's."""
    thresholds = ("fff_leaf_threshold",) if spec.leaf_sparsity else ()
    if control is Control.RANDOM_ROUTING:
        return ("fff_in_weight", "fff_in_bias", *thresholds)
    if control is Control.DELETED or (control is Control.DENSE and spec.leaf_width):
        return ("fff_in_weight", "fff_in_bias", "fff_out_weight")
    return thresholds


def _control_layer(site: FFNSite, layer: FFFLayer, control: Control, x: Tensor) -> FFFLayer:
    y = site.dense().to("cpu", torch.float32)(x)
    if control is Control.DELETED:
        return _deleted(layer.spec, y)
    if control is Control.DENSE:
        return _dense(site, layer.spec, x, y)
    return randomly_routed(layer, x)


def _deleted(spec: FFFSpec, y: Tensor) -> FFFLayer:
    """One node that gives nothing, and the block's mean output."""
    layer = FFFLayer(FFFSpec(spec.d_in, spec.d_out, 0, activation=spec.activation), dtype=torch.float32)
    for parameter in layer.parameters():
        parameter.zero_()
    layer.fff_bias.copy_(token_weights(y) @ y / len(y))
    return layer


def _dense(site: FFNSite, spec: FFFSpec, x: Tensor, y: Tensor) -> FFFLayer:
    """A dense block of the active width, of the original's neurons that explain it best.

    Plain neurons stand as trees of one node each, which is a dense block exactly. Gated ones need a leaf
    block; the node above it is dead, and not counted.
    """
    width = spec.active_width
    neurons = neurons_of(site)
    chosen, out, constant = choose_neurons(x, y, neurons, width, token_weights(y))
    kept = neurons[chosen]
    if not kept.gated:
        layer = FFFLayer(FFFSpec(spec.d_in, spec.d_out, 0, trees=width, activation=kept.activation))
        layer.fff_in_weight.copy_(kept.rows[0][:, None])
        layer.fff_in_bias.copy_(kept.bias[0][:, None])
        layer.fff_out_weight.copy_(out[:, None])
    else:
        layer = FFFLayer(
            FFFSpec(spec.d_in, spec.d_out, 0, leaf_width=width, leaf_gated=True, activation=kept.activation)
        )
        for parameter in layer.parameters():
            parameter.zero_()
        layer.fff_in_bias.fill_(OFF)
        state = layer.state_dict()
        for name, rows, bias in zip(("in", "gate"), kept.rows, kept.bias, strict=True):
            state[f"fff_leaf_{name}_weight"][0, 0] = rows
            state[f"fff_leaf_{name}_bias"][0, 0] = bias
        state["fff_leaf_out_weight"][0, 0] = out
    layer.fff_bias.copy_(constant)
    return layer


@torch.no_grad()
def randomly_routed(layer: FFFLayer, x: Tensor, seed: int = 0) -> FFFLayer:
    """A layer with hyperplanes drawn anew, of the same lengths, each through the median of what comes there.

    Args:
        layer: The layer; it stays as it is.
        x: [tokens, d_in], what it is given.
        seed: Of the draw.
    """
    made = FFFLayer(layer.spec, dtype=torch.float32)
    made.load_state_dict(layer.state_dict())
    rows = made.fff_in_weight
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(
        rows
    )
    drawn *= rows.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
    rows.copy_(drawn)
    for tree in range(layer.spec.trees):
        node = torch.zeros(len(x), dtype=torch.int64)
        for _ in range(layer.spec.depth + 1):
            s = (x * rows[tree, node]).sum(1)
            order = torch.argsort(s, stable=True)
            order = order[torch.argsort(node[order], stable=True)]
            visited, counts = torch.unique_consecutive(node[order], return_counts=True)
            middle = order[counts.cumsum(0) - 1 - counts // 2]
            made.fff_in_bias[tree, visited] = -s[middle]
            node = 2 * node + 1 + (s + made.fff_in_bias[tree, node] > 0).long()
    return made
