"""The command `estimate`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fffconvert.cli import estimate_tables as tables
from fffconvert.cli.adapter import command
from fffconvert.cli.app import app
from fffconvert.cli.running import Output
from fffconvert.errors import FFFError
from fffconvert.options import EstimateOptions, values_of
from fffconvert.options.estimate import Sweep
from fffconvert.records import plain

if TYPE_CHECKING:
    from fffconvert.estimation import Estimate


@command(app, EstimateOptions)
def estimate(
    out: Output,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Names (--list), hub ids, folders, config.json files, pkg:DIST[/PATH]."
        ),
    ] = None,
    *,
    options: EstimateOptions,
    save_hardware: Annotated[
        Path | None, typer.Option(help="Write the machine to a .json file that --hardware reads.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Run the model here at these sizes, as in 1x32,8x128, or at 'grid', and show the error.",
        ),
    ] = None,
    sweep: Annotated[
        Sweep | None, typer.Option(help="A row for each depth, context, batch, or model.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the rows of --sweep to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw --sweep to this .png, .svg or .pdf file.")] = None,
    list_names: Annotated[
        bool, typer.Option("--list", help="List models and machines with their sources.")
    ] = False,
) -> None:
    """Say what FFF layers would bring to MODEL: multiply-adds, bytes, memory, seconds. Reads no weights."""
    hardware = options.hardware
    if not (models or list_names or sweep is Sweep.MODEL):
        raise FFFError("no model was given; give a name of fffconvert estimate --list, a folder, or a hub id")
    if (csv or plot) and not sweep:
        raise FFFError(
            "--csv and --plot write what --sweep finds; give --sweep depth, context, batch or model"
        )
    if models and len(models) > 1 and not sweep:
        raise FFFError(f"{len(models)} models were given; expected one, or --sweep")
    if compare and hardware and hardware.lower() != "this" and not hardware.endswith(".json"):
        raise FFFError(f"--compare runs the model here; expected --hardware this, found {hardware}")
    if list_names:
        _list(out)
        return
    from fffconvert.estimation import estimate as run
    from fffconvert.estimation import sweeps
    from fffconvert.estimation.report import machine

    names = models or list(sweeps.SIZES)
    found = machine("this" if compare and hardware is None else hardware)
    if save_hardware is not None:
        if found is None:
            raise FFFError("--save-hardware needs a machine; give --hardware this")
        save_hardware.write_text(json.dumps(plain(found), indent=2), encoding="utf-8")
    chosen = values_of(dataclasses.replace(options, hardware=found))
    if sweep is not None:
        rows = sweeps.sweep(names, sweep, lambda name: run(name, **chosen))
        _sweep(out, rows, sweep, csv, plot)
    elif compare is not None:
        _compare(out, run(names[0], **chosen), compare)
    else:
        _show(out, run(names[0], **chosen).to_dict())


def _show(out: Output, found: dict[str, Any]) -> None:
    out.document(found)
    out.show(tables.headline(found), tables.parts(found))
    if len(found["by_context"]) > 1:
        out.show(tables.contexts(found["by_context"]))
    if found["roofline"]:
        out.show(tables.times(found["roofline"]))
    out.show(*(f"- {sentence}" for sentence in found["advice"]))


def _sweep(out: Output, rows: list[dict[str, Any]], over: Sweep, csv: Path | None, plot: Path | None) -> None:
    from fffconvert.estimation.sweeps import write_csv

    if csv is not None:
        write_csv(rows, csv)
    if plot is not None:
        from fffconvert.estimation.plots import plot as draw

        draw(rows, over, plot)
    out.document({"sweep": over.value, "rows": rows})
    out.show(tables.sweep(rows), *(f"wrote {path}" for path in (csv, plot) if path is not None))


def _compare(out: Output, estimate: Estimate, sizes: str) -> None:
    from fffconvert.estimation.comparison import compare, parse_sizes

    rows = plain(compare(estimate, parse_sizes(sizes)))
    worst = max(abs(row["error"]) for row in rows)
    document = {"model": estimate.model, "hardware": estimate.machine, "rows": rows, "largest_error": worst}
    out.document(document)
    out.show(tables.comparison(rows), f"largest error of the estimate: {worst:.0%}")


def _list(out: Output) -> None:
    from fffconvert.estimation.machines import known_machines
    from fffconvert.estimation.models import presets

    models = [
        {"name": known.name, "parameters": known.parameters, "source": known.source}
        for known in presets().values()
    ]
    known = [{"name": m.name, "title": m.title, "source": m.source} for m in known_machines().values()]
    out.document({"models": models, "hardware": known})
    out.show(tables.sources("models", models), tables.sources("hardware", known))
