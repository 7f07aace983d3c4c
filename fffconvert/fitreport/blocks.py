"""One block at a time: the fitted layers and their controls, by held-out error."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.fit import fit_layer
from fffconvert.fit.diagnose import diagnose, outputs
from fffconvert.fit.layer import r2
from fffconvert.fit.moments import token_weights
from fffconvert.fit.neurons import neurons_of
from fffconvert.fit.refine import refine_layer
from fffconvert.fitreport.controls import dense_control, kept_neurons, random_routing
from fffconvert.locate import FFNSite
from fffconvert.plan import FFFSpec
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
    """

    passes: int = 30
    refine_passes: int = 4


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
    neurons = neurons_of(site)
    activation = neurons.activation
    rows: dict[str, Any] = {}
    started = time.monotonic()

    def note(name: str, module: nn.Module, width: int, parameters: int, **more: Any) -> None:
        nonlocal started
        y_hat = outputs(module, test)
        rows[name] = {
            "error": 1 - r2(y_test, y_hat),
            "token_error": 1 - r2(y_test, y_hat, token_weights(y_test)),
            "active_width": width,
            "storage": parameters / site.parameters,
            "seconds": round(time.monotonic() - started, 1),
            **more,
        }
        done(name)
        started = time.monotonic()

    def note_layer(name: str, layer: FFFLayer, **more: Any) -> None:
        found = dataclasses.asdict(diagnose(layer, test, y_test))
        routing = {key: found[key] for key in ROUTING}
        note(name, layer, layer.spec.active_width, layer.spec.parameters, **routing, **more)

    d = site.d_model
    common: dict[str, Any] = {"d_in": d, "d_out": d, "branch_outputs": True, "activation": activation}
    paths = fit_layer(train, y, FFFSpec(**common, depth=PATH_DEPTH))
    note_layer("paths", paths)
    spec = FFFSpec(**common, depth=LEAF_DEPTH, leaf_width=LARGE - LEAF_DEPTH - 1, leaf_gated=neurons.gated)
    leaves = fit_layer(train, y, spec, neurons)
    note_layer("leaves", leaves)
    note("leaves_random_routing", random_routing(leaves), spec.active_width, spec.parameters)
    note("neurons", kept_neurons(train, y, neurons, LARGE), LARGE, LARGE * 2 * d + d)
    for name, width in (("dense_small", SMALL), ("dense_large", LARGE)):
        control, passes = dense_control(train, y, width, activation, passes=effort.passes)
        note(name, control, width, sum(p.numel() for p in control.parameters()), passes=passes)
    if effort.refine_passes:
        for name, layer in (("paths", paths), ("leaves", leaves)):
            passes = refine_layer(layer, train, y, passes=effort.refine_passes)
            note_layer(f"{name}_refined", layer, passes=passes)
    return rows
