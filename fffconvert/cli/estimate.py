"""The command `estimate`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fffconvert.cli import estimate_tables as tables
from fffconvert.cli.commands import AsJson, Debug, RemoteCode, Revision, app
from fffconvert.cli.reporting import Output, one_line_errors, output
from fffconvert.planning import LayerForm
from fffconvert.records import plain

if TYPE_CHECKING:
    from fffconvert.estimation import Estimate


class Phase(str, Enum):
    """`fffconvert.estimate.Phase`, without importing torch for it."""

    PREFILL = "prefill"
    DECODE = "decode"
    TRAIN = "train"


class Sweep(str, Enum):
    """`fffconvert.estimation.sweeps.Sweep`, without importing torch for it."""

    DEPTH = "depth"
    CONTEXT = "context"
    BATCH = "batch"
    MODEL = "model"


@app.command()
@one_line_errors
def estimate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Names (--list), hub ids, folders, config.json files, pkg:DIST[/PATH]."
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(help="Depth of the trees; by default as many nodes as the block has neurons."),
    ] = None,
    trees: Annotated[int | None, typer.Option(help="Trees side by side; 1 by default.")] = None,
    trunk: Annotated[int, typer.Option(help="Rank of the always-active linear map; 0 for none.")] = 0,
    active_fraction: Annotated[
        float | None,
        typer.Option(help="Instead of --trees: share of a block's multiply-adds that may be left."),
    ] = None,
    layer: Annotated[
        LayerForm, typer.Option(help="Form of the layer: what is stored, not what is computed.")
    ] = LayerForm.BRANCH,
    context: Annotated[int, typer.Option(help="Tokens of each sequence.")] = 512,
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    phase: Annotated[
        Phase, typer.Option(help="All positions at once, one further token of each sequence, or training.")
    ] = Phase.PREFILL,
    dtype: Annotated[
        str, typer.Option(help="Of weights and activations: float32, bfloat16, int8, …")
    ] = "float32",
    hardware: Annotated[
        str | None,
        typer.Option(help="A machine (--list), 'this' to measure the one at hand, or a .json file."),
    ] = None,
    save_hardware: Annotated[
        Path | None, typer.Option(help="Write the machine to a .json file that --hardware reads.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Training tokens.")] = 1_000_000_000,
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
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what FFF layers would bring to MODEL: multiply-adds, bytes, memory, seconds. Reads no weights."""
    from fffconvert.errors import FFFError
    from fffconvert.estimation import estimate as run
    from fffconvert.estimation import sweeps

    names = models or []
    if not names and sweep is Sweep.MODEL:
        names = list(sweeps.SIZES)
    if not (names or list_names):
        raise FFFError("no model was given; give a name of fffconvert estimate --list, a folder, or a hub id")
    if (csv or plot) and not sweep:
        raise FFFError(
            "--csv and --plot write what --sweep finds; give --sweep depth, context, batch or model"
        )
    if len(names) > 1 and not sweep:
        raise FFFError(f"{len(names)} models were given; expected one, or --sweep")
    if compare and hardware and hardware.lower() != "this" and not hardware.endswith(".json"):
        raise FFFError(f"--compare runs the model here; expected --hardware this, found {hardware}")
    with output(as_json) as out:
        if list_names:
            _list(out)
            return
        machine = _machine("this" if compare and hardware is None else hardware)
        if save_hardware is not None:
            if machine is None:
                raise FFFError("--save-hardware needs a machine; give --hardware this")
            save_hardware.write_text(json.dumps(plain(machine), indent=2), encoding="utf-8")

        def make(name: str) -> Estimate:
            return run(
                name,
                depth=depth,
                trees=trees,
                trunk=trunk,
                active_fraction=active_fraction,
                layer=layer,
                context=context,
                batch=batch,
                phase=phase.value,
                dtype=dtype,
                hardware=machine,
                tokens=tokens,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )

        if sweep is not None:
            _sweep(out, sweeps.sweep(names, sweeps.Sweep(sweep.value), make), sweep, csv, plot)
        elif compare is not None:
            _compare(out, make(names[0]), compare)
        else:
            _show(out, make(names[0]).to_dict())


def _machine(name: str | None) -> Any:
    from fffconvert.estimation.report import machine

    return machine(name)


def _show(out: Output, found: dict[str, Any]) -> None:
    out.document(found)
    out.show(tables.headline(found), tables.parts(found))
    if len(found["by_context"]) > 1:
        out.show(tables.contexts(found["by_context"]))
    if found["roofline"]:
        out.show(tables.times(found["roofline"]))
    out.show(*(f"- {sentence}" for sentence in found["advice"]))


def _sweep(out: Output, rows: list[dict[str, Any]], over: Sweep, csv: Path | None, plot: Path | None) -> None:
    from fffconvert.estimation.sweeps import Sweep as Over
    from fffconvert.estimation.sweeps import write_csv

    if csv is not None:
        write_csv(rows, csv)
    if plot is not None:
        from fffconvert.estimation.plots import plot as draw

        draw(rows, Over(over.value), plot)
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
    from fffconvert.estimation.machines import machines
    from fffconvert.estimation.models import presets

    models = [
        {"name": known.name, "parameters": known.parameters, "source": known.source}
        for known in presets().values()
    ]
    known = [{"name": m.name, "title": m.title, "source": m.source} for m in machines().values()]
    out.document({"models": models, "hardware": known})
    out.show(tables.sources("models", models), tables.sources("hardware", known))
