"""Spend a budget of multiply-adds over the blocks of a model: how large a layer each of them becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert import surgery
from fffconvert.conversion import Prepared, activations_at, blocks_and_text
from fffconvert.errors import FFFError
from fffconvert.figures import figure_class
from fffconvert.fit import fit_layer, r2, token_weights
from fffconvert.fit.calibrate import Batch, on_device
from fffconvert.fit.mean import MeanOutput
from fffconvert.fit.neurons import neurons_of
from fffconvert.fit.padding import mask_for, without_padding
from fffconvert.fit.refine import Pair
from fffconvert.fit.stream import ActivationStream
from fffconvert.forward import evaluation, tensors_in
from fffconvert.location import FFNSite
from fffconvert.options import PlanOptions, verb
from fffconvert.planning.file import Choice, Curve, Plan, PlannedBlock
from fffconvert.planning.spec import FFFSpec
from fffconvert.records import read
from fffconvert.store import digest, once

SHARES = (0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75)
"""Active widths that are measured, as shares of the block's."""
PATHS = ({"depth": 0}, {"depth": 5}, {"depth": 8})
"""Layers without leaves that are measured: a single neuron stands for a block that is ablated."""
LEAF_DEPTH = 4
SPARSITIES = (0.3, 0.4, 0.5, 0.7, 0.9)
"""Shares of its neurons that a block kept whole skips."""
PROBE_BATCHES = 4


@verb(PlanOptions)
def plan(model: nn.Module | str, options: PlanOptions) -> Plan:
    """Measure what each block of a model needs, and spend a budget of multiply-adds where it helps most.

    What was measured is stored: another budget for the same model and text takes no time.

    Args:
        model: Any module, which is left as it is, or the name of a model.

    Returns:
        What `convert(model, plan=…)` takes, with the curves that were measured.

    Raises:
        FFFError: The budget cannot be met, or what `convert` refuses.
    """
    if options.plot is not None:
        figure_class()  # says so before minutes of measuring if there is none
    own, prepared = blocks_and_text(model, options)
    key = digest(prepared.specs, own, prepared.batches)
    measured = once("curves", key, lambda: {"curves": measure_curves(own, prepared)})
    curves = [read(Curve, curve, "curves", "program") for curve in measured["curves"]]
    share = options.budget if options.speedup is None else budget_of_speedup(curves, options.speedup)
    chosen = spend(curves, budget=share, max_error=options.max_error)
    found = Plan(
        {curve.name: _planned(curve, chosen[curve.name]) for curve in curves},
        model if isinstance(model, str) else type(model).__name__,
        tuple(curves),
    )
    if options.output is not None:
        found.save(options.output)
    if options.plot is not None:
        plot(options.plot, curves, chosen)
    return found


def _planned(curve: Curve, chosen: Choice) -> PlannedBlock:
    shape: dict[str, Any] = chosen.shape
    return PlannedBlock(
        **shape, expected_error=round(chosen.error, 5), sensitivity=round(curve.sensitivity, 6)
    )


def measure_curves(model: nn.Module, prepared: Prepared) -> list[Curve]:
    """Fit layers of several sizes to every block, and find how much the model depends on each block.

    Args:
        model: The model; left as it is.
        prepared: Its blocks and text, from `fffconvert.conversion.prepare`.
    """
    stream = ActivationStream(model, prepared.sites, prepared.batches)
    probes = prepared.batches[: min(prepared.held_out, PROBE_BATCHES)]
    expected = _outputs(model, probes)
    curves = []
    for site in tqdm(prepared.sites, desc="plan", unit="block", disable=None):
        _, held_out, fitted = activations_at(stream, site, prepared.held_out)
        found = [_choice(site, prepared.specs[site.name], shape, fitted, held_out) for shape in _shapes(site)]
        dense = sum(projection.weight.numel() for projection in (*site.up, site.down))
        curves.append(
            Curve(
                site.name,
                dense,
                site.macs_share,
                _sensitivity(model, site, fitted[1].mean(0), probes, expected),
                _falling(found),
            )
        )
    return curves


def spend(
    curves: Sequence[Curve], *, budget: float | None = None, max_error: float | None = None
) -> dict[str, Choice]:
    """Choose a layer for each block: the best value for multiply-adds first, from a single neuron each.

    Args:
        curves: What every block can become.
        budget: Share of the blocks' dense multiply-adds that may be spent.
        max_error: Spend until the mean error of the blocks, weighted by sensitivity, is no larger.

    Raises:
        FFFError: Not exactly one of the two is given, or what was measured cannot meet it.
    """
    if (budget is None) == (max_error is None):
        raise FFFError("give exactly one of `budget` and `max_error`")
    total = sum(curve.macs for curve in curves)
    chosen = [0] * len(curves)

    def spent() -> float:
        return sum(c.choices[i].macs for c, i in zip(curves, chosen, strict=True)) / total

    if budget is not None and spent() > budget:
        raise FFFError(
            f"the budget is {budget:.3%} of the multiply-adds; expected at least {spent():.3%}, "
            "which a single neuron for each block takes"
        )
    while max_error is None or mean_error(curves, chosen) > max_error:
        steps = [
            (value, block, step)
            for block, curve in enumerate(curves)
            for step in range(chosen[block] + 1, len(curve.choices))
            for value in [_value(curve, chosen[block], step)]
            if value > 0
            if budget is None
            or spent() + (curve.choices[step].macs - curve.choices[chosen[block]].macs) / total <= budget
        ]
        if not steps:
            break
        _, block, step = max(steps)
        chosen[block] = step
    if max_error is not None and mean_error(curves, chosen) > max_error:
        raise FFFError(
            f"the largest layers that were measured leave an error of {mean_error(curves, chosen):.3f}; "
            f"expected a max error of at least that, found {max_error}"
        )
    return {curve.name: curve.choices[i] for curve, i in zip(curves, chosen, strict=True)}


def mean_error(curves: Sequence[Curve], chosen: Sequence[int]) -> float:
    """Mean error of the blocks, each weighted by the model's sensitivity to it."""
    weights = [curve.sensitivity for curve in curves]
    errors = [curve.choices[i].error for curve, i in zip(curves, chosen, strict=True)]
    return sum(w * e for w, e in zip(weights, errors, strict=True)) / max(sum(weights), 1e-30)


def budget_of_speedup(curves: Sequence[Curve], speedup: float) -> float:
    """The share of the blocks' multiply-adds that may be left if the whole model is to need 1 / speedup.

    Raises:
        FFFError: The rest of the model alone needs more.
    """
    share = sum(curve.macs_share for curve in curves)
    left = (1 / speedup - (1 - share)) / share
    if left <= 0:
        raise FFFError(
            f"speedup is {speedup}; without any feedforward block the model's multiply-adds fall by "
            f"{1 / (1 - share):.2f}x, so expected less than that"
        )
    return min(left, 1.0)


def plot(path: Path, curves: Sequence[Curve], chosen: Mapping[str, Choice]) -> None:
    """Draw each block's error against its share of the multiply-adds, and what was chosen.

    Raises:
        FFFError: matplotlib is missing.
    """
    figure = figure_class()(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", xlabel="multiply-adds, share of the dense block", ylabel="1 - R² per token"
    )
    for curve in curves:
        points = [(choice.macs / curve.macs, choice.error) for choice in curve.choices]
        (line,) = axes.plot(
            *zip(*points, strict=True), marker=".", label=f"{curve.name} ({curve.sensitivity:.2g})"
        )
        own = chosen[curve.name]
        axes.plot(
            own.macs / curve.macs, own.error, "o", color=line.get_color(), markersize=10, fillstyle="none"
        )
    axes.set_title("circles: chosen; in brackets: the model's sensitivity to the block")
    axes.legend(fontsize="small")
    figure.savefig(path)


def _shapes(site: FFNSite) -> list[dict[str, float]]:
    """Shapes to measure, as fields of `FFFSpec`."""
    shapes: list[dict[str, float]] = [dict(shape) for shape in PATHS]
    for share in SHARES:
        width = round(share * site.d_hidden)
        if width > LEAF_DEPTH + 1:
            # Wide leaves need few regions: fewer are kept, so that storage stays in bounds.
            depth = max(d for d in range(LEAF_DEPTH + 1) if d == 0 or share * 2 ** (d + 1) <= 4)
            shapes.append({"depth": depth, "leaf_width": width - depth - 1})
    whole = {"depth": 0, "leaf_width": site.d_hidden}
    return [*shapes, *({**whole, "leaf_sparsity": sparsity} for sparsity in SPARSITIES)]


def _choice(site: FFNSite, spec: FFFSpec, shape: dict[str, Any], train: Pair, test: Pair) -> Choice:
    leaves = bool(shape.get("leaf_width"))
    spec = dataclasses.replace(
        spec,
        trees=1,
        trunk=0,
        **{"leaf_width": 0, "leaf_sparsity": 0.0, **shape},
        leaf_gated=leaves and site.gated,
        branch_outputs=True,
    )
    neurons = neurons_of(site) if leaves else None
    layer = fit_layer(*train, dataclasses.replace(spec, feature_axis=-1), neurons)
    with torch.no_grad():
        error = 1 - r2(test[1], layer(test[0]), token_weights(test[1]))
    return Choice(shape, spec.macs_per_token, error, spec.parameters)


def _falling(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Those that no cheaper one matches."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.macs, c.error)):
        if not kept or choice.error < kept[-1].error:
            kept.append(choice)
    return tuple(kept)


def _value(curve: Curve, now: int, step: int) -> float:
    """What a step takes from the model's error per multiply-add."""
    before, after = curve.choices[now], curve.choices[step]
    return curve.sensitivity * (before.error - after.error) / max(1, after.macs - before.macs)


def _sensitivity(
    model: nn.Module, site: FFNSite, mean: Tensor, probes: Sequence[Batch], expected: Sequence[Tensor]
) -> float:
    ablated = MeanOutput(mean, site.placement.feature_axis)
    record = surgery.install(model, {site.name: (site.placement, ablated)})
    try:
        found = _outputs(model, probes)
    finally:
        record.undo()
    change = sum(float((f - e).double().square().sum()) for f, e in zip(found, expected, strict=True))
    return change / max(sum(float(e.double().square().sum()) for e in expected), 1e-30)


def _outputs(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The largest output on each batch, [tokens, d], without padding."""
    with evaluation(model):
        return [
            without_padding(_largest(model(**on_device(model, batch))), mask_for(model, "", batch), "output")
            for batch in batches
        ]


def _largest(output: Any) -> Tensor:
    key: Callable[[Tensor], int] = torch.numel
    return max((tensor for tensor in tensors_in(output) if tensor.is_floating_point()), key=key)
