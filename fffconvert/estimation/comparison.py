"""Hold the roofline against the clock: run the model here, original and converted, and give the error."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from fffconvert import surgery
from fffconvert.errors import FFFError
from fffconvert.estimation import roofline
from fffconvert.estimation.measure import timings
from fffconvert.estimation.models import built_with_weights
from fffconvert.estimation.report import Estimate
from fffconvert.estimation.workload import Workload
from fffconvert.fit.length import longest
from fffconvert.location import locate
from fffconvert.location.inputs import example_inputs
from fffconvert.options.estimate import Phase
from fffconvert.tree import FFFLayer

GRID = tuple((batch, length) for batch in (1, 8, 32) for length in (32, 128, 512))
"""Sequences and tokens of each, where "grid" is asked for."""
SECONDS = 1.0
"""Each size is run for so long, and at least three times."""


@dataclass(frozen=True)
class Compared:
    """One size of one model.

    Attributes:
        model: "original" or "converted".
        batch: Sequences.
        length: Tokens of each.
        estimated_ms: By the roofline.
        median_ms: Measured.
        p20_ms: A fifth of the runs were faster.
        p80_ms: A fifth of the runs were slower.
        error: Estimate over median, less one.
    """

    model: str
    batch: int
    length: int
    estimated_ms: float
    median_ms: float
    p20_ms: float
    p80_ms: float
    error: float


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Read "1x32,8x128", or "grid".

    Raises:
        FFFError: It is something else.
    """
    if text == "grid":
        return list(GRID)
    try:
        sizes = [tuple(int(number) for number in size.split("x")) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or any(len(size) != 2 or min(size) < 1 for size in sizes):
        raise FFFError(f"sizes to compare are {text!r}; expected BATCHxLENGTH as in 1x32,8x128, or grid")
    return [(size[0], size[1]) for size in sizes]


def compare(estimate: Estimate, sizes: Sequence[tuple[int, int]]) -> list[Compared]:
    """Time the model with random weights and distinct random inputs, and compare with the estimate.

    Args:
        estimate: Of a model given by name, on the machine at hand.
        sizes: Sequences and tokens of each.

    Raises:
        FFFError: There is no machine, or the phase is not prefill.
    """
    if estimate.machine is None or estimate.work.phase is not Phase.PREFILL or estimate.dtype != "float32":
        raise FFFError("only prefill in float32 can be compared, with `hardware=this`")
    model = built_with_weights(estimate.model)
    names = {block.name: spec for block, spec in zip(estimate.anatomy.blocks, estimate.specs, strict=True)}
    rows = list(_run(estimate, "original", model, sizes))
    sites = [site for site in locate(model) if site.name in names]
    surgery.replace(model, {site: FFFLayer(names[site.name]) for site in sites})
    return rows + list(_run(estimate, "converted", model.eval(), sizes))


def _run(
    estimate: Estimate, name: str, model: nn.Module, sizes: Sequence[tuple[int, int]]
) -> Iterator[Compared]:
    assert estimate.machine is not None
    anatomy = estimate.anatomy if name == "original" else estimate.converted
    for batch, asked in tqdm(sizes, desc=name, unit="size", disable=None):
        length = longest(model, None, asked, warn=True)
        inputs = example_inputs(model, batch=batch, length=length, decoder_length=length)
        with torch.inference_mode():
            times = sorted(timings(partial(model, **inputs), SECONDS, 100))
        work = Workload(batch, length, Phase.PREFILL, anatomy.generates)
        estimated = roofline.duration(anatomy, work, estimate.machine).seconds
        median = statistics.median(times)
        low, *_, high = statistics.quantiles(times, n=5)
        yield Compared(
            name,
            batch,
            length,
            estimated_ms=1e3 * estimated,
            median_ms=1e3 * median,
            p20_ms=1e3 * low,
            p80_ms=1e3 * high,
            error=estimated / median - 1,
        )
