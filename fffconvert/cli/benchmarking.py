"""The commands `bench` and `bench-layer`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from fffconvert.cli import bench_model_tables, bench_tables
from fffconvert.cli.adapter import command
from fffconvert.cli.app import app
from fffconvert.cli.running import Output
from fffconvert.options import BenchLayerOptions, BenchOptions, values_of


@command(app, BenchOptions)
def bench(
    out: Output,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A converted or deployed folder; any model with --depth."),
    ],
    options: BenchOptions,
) -> None:
    """Measure the speed of a whole converted MODEL against its original, outputs checked."""
    from fffconvert.benchmarks import bench as measure

    found = measure(model, **values_of(options))
    out.document(found)
    out.show(*bench_model_tables.everything(found))
    if found.output is not None:
        out.show(f"wrote {found.output}")


@command(app, BenchLayerOptions, "bench-layer")
def bench_layer(
    out: Output,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Measure with the real activations of this model's blocks too, or of its layers.",
        ),
    ] = None,
    *,
    options: BenchLayerOptions,
) -> None:
    """Measure the speed of FFF layers against dense blocks, outputs checked."""
    from fffconvert.benchmarks import bench_layer as measure

    found = measure(**values_of(dataclasses.replace(options, model=model)))
    out.document(found)
    out.show(*bench_tables.everything(found))
    if options.plot is not None:
        out.show(f"wrote {options.plot}")
