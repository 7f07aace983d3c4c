"""The command `sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fffconvert.cli import eval_tables
from fffconvert.cli.commands import AsJson, Debug, Model, Overwrite, RemoteCode, TextColumn, app
from fffconvert.cli.reporting import one_line_errors, output


@app.command()
@one_line_errors
def sweep(
    model: Model,
    destination: Annotated[Path, typer.Option("--output", "-o", help="Folder for sweep.json and sweep.png.")],
    depths: Annotated[str, typer.Option(help="Depths of the trees, as in 2,5,8.")],
    task: Annotated[
        list[str],
        typer.Option(help="What to measure, as in eval; the first is what is traded against work."),
    ],
    trees: Annotated[str, typer.Option(help="Numbers of trees, as in 1,4.")] = "1",
    leaf_widths: Annotated[str, typer.Option(help="Neurons of the leaf blocks, as in 0,32.")] = "0",
    trunks: Annotated[str, typer.Option(help="Ranks of the linear map beside the trees.")] = "0",
    calibration: Annotated[list[str] | None, typer.Option(help="Text to fit on, as in convert.")] = None,
    text_column: TextColumn = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens.")] = 100_000,
    refine: Annotated[int, typer.Option(help="Passes of gradient steps, as in convert.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of local task data, as in eval.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text of language model tasks.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Examples of each task at most, for a quick look.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of kept results, as in eval.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the converted models.")] = False,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Convert MODEL at each point of a grid of trees, depths and leaf widths, and measure every one."""
    from fffconvert.evaluation.sweep import Grid, run_sweep
    from fffconvert.recipe import Recipe

    grid = Grid(
        *(
            _numbers(name, value)
            for name, value in (
                ("depths", depths),
                ("trees", trees),
                ("leaf-widths", leaf_widths),
                ("trunks", trunks),
            )
        )
    )
    columns = tuple(text_column or ())
    with output(as_json) as out:
        found = run_sweep(
            model,
            destination,
            grid,
            task,
            recipe=Recipe(depth=grid.depths[0], tokens=tokens, refine=refine, text_columns=columns),
            calibration=calibration or (),
            keep=keep,
            overwrite=overwrite,
            data_dir=data_dir,
            texts=text or (),
            text_columns=columns,
            limit=limit,
            cache=cache,
            trust_remote_code=trust_remote_code,
        )
        out.document(found)
        out.show(*eval_tables.sweep(found), f"wrote {destination}/sweep.json and sweep.png")


def _numbers(name: str, text: str) -> tuple[int, ...]:
    from fffconvert.errors import FFFError

    try:
        return tuple(dict.fromkeys(int(word) for word in text.split(",") if word.strip()))
    except ValueError:
        raise FFFError(f"--{name} is {text!r}; expected numbers, as in 2,5,8") from None
