"""One block at a time: the fitted layers and their controls, by held-out error."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.controls import dense_control, dense_layer, randomly_routed
from fffconvert.fit import fit_layer
from fffconvert.fit.diagnostics import diagnose, outputs
from fffconvert.fit.layer import r2
from fffconvert.fit.moments import token_weights
from fffconvert.fit.neurons import neurons_of
from fffconvert.fit.refine import refine_layer, split_off
from fffconvert.fitreport.experts import fit_experts
from fffconvert.location import FFNSite
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

PATH_DEPTH, LEAF_DEPTH = 10, 4
SMALL, LARGE = 11, 112
"""Active widths at which conversions and dense blocks meet."""
ROUTING = ("routing_entropy", "dead_node_share", "path_balance", "margins")


@dataclass(frozen=True)
class Effort:
    """How long anything that takes gradient steps may take.

    Attributes:
        passes: Passes over the tokens for dense controls, which stop earlier where none helps.
        refine_passes: The same for refined layers; 0 leaves refinement out.
        leaf_depths: Further depths of trees with leaves of the same active width, for a curve of error
            against storage.
    """

    passes: int = 30
    refine_passes: int = 4
    leaf_depths: tuple[int, ...] = (5, 6)


def compare_block(
    site: FFNSite, train: Tensor, test: Tensor, effort: Effort, done: Callable[[str], None]
) -> dict[str, Any]:
    """Fit one block in every way.

    Args:
        site: The block.
        train: [tokens, d_model], inputs to fit on.
        test: [tokens, d_model], inputs of held-out text.
        effort: How long to train.
        done: Is told what has been fitted.

    Returns:
        Per way: `error` (1 - R²), `token_error` (all tokens alike), `seconds`, `active_width`, `storage`
        (stored parameters over those of the block) and more.
    """
    block = site.dense().to("cpu", torch.float32)
    y, y_test = outputs(block, train), outputs(block, test)
    # No way is fitted on the tokens by which those that take steps are told when to stop.
    own, held = split_off(train, y)
    neurons = neurons_of(site)
    rows: dict[str, Any] = {}
    started = time.monotonic()

    def note(name: str, module: nn.Module, width: int, parameters: int, **more: Any) -> None:
        nonlocal started
        seconds = round(time.monotonic() - started, 1)
        y_hat = outputs(module, test)
        rows[name] = {
            "error": 1 - r2(y_test, y_hat),
            "token_error": 1 - r2(y_test, y_hat, token_weights(y_test)),
            "active_width": width,
            "storage": parameters / site.parameters,
            "seconds": seconds,
            **more,
        }
        done(f"{name}: error per token {rows[name]['token_error']:.4f}")
        started = time.monotonic()

    def note_layer(name: str, layer: FFFLayer, **more: Any) -> None:
        found = dataclasses.asdict(diagnose(layer, test, y_test))
        routing = {key: found[key] for key in ROUTING}
        note(name, layer, layer.spec.active_width, layer.spec.parameters, **routing, **more)

    def fitted(name: str, **shape: int) -> FFFLayer:
        spec = FFFSpec(
            d,
            d,
            **shape,
            branch_outputs=True,
            activation=neurons.activation,
            leaf_gated=neurons.gated and bool(shape.get("leaf_width")),
        )
        layer = fit_layer(*own, spec, neurons if spec.leaf_width else None)
        note_layer(name, layer)
        return layer

    d = site.d_model
    paths = fitted("paths", depth=PATH_DEPTH)
    leaves = fitted("leaves", depth=LEAF_DEPTH, leaf_width=LARGE - LEAF_DEPTH - 1)
    for depth in effort.leaf_depths:
        fitted(f"leaves_depth_{depth}", depth=depth, leaf_width=LARGE - depth - 1)
    note("leaves_random_routing", randomly_routed(leaves), LARGE, leaves.spec.parameters)
    note("neurons", dense_layer(*own, neurons, LARGE), LARGE, LARGE * 2 * d + d)
    experts = fit_experts(*own, neurons, LARGE)
    note("experts", experts, LARGE, site.parameters)
    for name, width in (("dense_small", SMALL), ("dense_large", LARGE)):
        control, passes = dense_control(own, held, width, neurons.activation, passes=effort.passes)
        note(name, control, width, sum(p.numel() for p in control.parameters()), passes=passes)
    if effort.refine_passes:
        for name, layer in (("paths", paths), ("leaves", leaves)):
            passes = refine_layer(layer, own, held, passes=effort.refine_passes)
            note_layer(f"{name}_refined", layer, passes=passes)
    return rows
