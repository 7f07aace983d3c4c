"""The command `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fffconvert.cli import tables
from fffconvert.cli.commands import AsJson, Debug, MinExpansion, Model, RemoteCode, Revision, TextColumn, app
from fffconvert.cli.reporting import one_line_errors, output


@app.command()
@one_line_errors
def plan(
    model: Model,
    destination: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, for convert --plan.")
    ] = Path("plan.yaml"),
    budget: Annotated[
        float | None, typer.Option(help="Share of the blocks' multiply-adds that may be left, as in 0.05.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="The whole model's multiply-adds before over after.")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Mean error (1 - R² per token) of the blocks that may be left.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw each block's curve of error to this file.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only blocks that match.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not the blocks that match.")] = None,
    calibration: Annotated[list[str] | None, typer.Option(help="Text to measure on, as in convert.")] = None,
    text_column: TextColumn = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens.")] = 50_000,
    seed: Annotated[int, typer.Option(help="Order of the calibration text.")] = 0,
    min_expansion: MinExpansion = 1.0,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure what each block of MODEL needs, and spend a budget of multiply-adds where it helps most."""
    from fffconvert import hub
    from fffconvert.conversion import prepare
    from fffconvert.errors import FFFError
    from fffconvert.figures import figure_class
    from fffconvert.fit import read_corpus
    from fffconvert.planning import search
    from fffconvert.planning.file import write_plan
    from fffconvert.recipe import Recipe

    for name, value, low in (
        ("budget", budget, 0.0),
        ("speedup", speedup, 1.0),
        ("max error", max_error, 0.0),
    ):
        if value is not None and not value > low:
            raise FFFError(f"{name} is {value}; expected more than {low:g}")
    if sum(value is not None for value in (budget, speedup, max_error)) != 1:
        raise FFFError("expected exactly one of --budget, --speedup and --max-error")
    with output(as_json) as out:
        if plot is not None:
            figure_class()  # says so before minutes of measuring if there is none
        loaded = hub.load(model, revision=revision, trust_remote_code=trust_remote_code)
        recipe = Recipe(
            depth=1,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            tokens=tokens,
            min_expansion=min_expansion,
            seed=seed,
            text_columns=tuple(text_column or ()),
        )
        texts = read_corpus(calibration, recipe.text_columns) if calibration else None
        curves = search.measure_curves(loaded.model, prepare(loaded.model, recipe, texts, loaded.tokenizer))
        share = search.budget_of_speedup(curves, speedup) if speedup is not None else budget
        chosen = search.spend(curves, budget=share, max_error=max_error)
        write_plan(destination, model, search.plan_blocks(curves, chosen))
        if plot is not None:
            search.plot(plot, curves, chosen)
        rows = [
            {
                "name": curve.name,
                **{"trees": 1, "trunk": 0, "leaf_width": 0, "leaf_sparsity": 0.0, **chosen[curve.name].shape},
                "active_fraction": chosen[curve.name].macs / curve.macs,
                "expected_error": chosen[curve.name].error,
                "parameters": chosen[curve.name].parameters,
                "sensitivity": curve.sensitivity,
                "curve": curve.choices,
            }
            for curve in curves
        ]
        out.document({"output": str(destination), "blocks": rows})
        out.show(tables.plan(rows))
        left = sum(chosen[c.name].macs for c in curves) / sum(c.macs for c in curves)
        out.show(
            f"the blocks keep {left:.1%} of their multiply-adds",
            f"wrote {destination}; next: fffconvert convert {model} --plan {destination} -o OUTPUT",
        )
