"""The command `distill`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fffconvert.cli.commands import AsJson, Debug, Overwrite, TextColumn, app
from fffconvert.cli.reporting import one_line_errors, output
from fffconvert.records import plain


class ControlName(str, Enum):
    """`fffconvert.controls.Control`, without importing torch for it."""

    ABLATED = "ablated"
    DENSE = "dense"
    RANDOM_ROUTING = "random-routing"
    ORIGINAL = "original"


@app.command()
@one_line_errors
def distill(
    model: Annotated[str, typer.Argument(metavar="DIR", help="What convert (or an earlier distill) wrote.")],
    destination: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    recipe: Annotated[Path, typer.Option(help="YAML recipe; see recipes/ in the sources.")],
    teacher: Annotated[
        str | None, typer.Option(help="Model to learn from; by default the one that was converted.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the teacher; by default the converted one.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text to train on, for the recipe's: files, or datasets names. May be repeated."),
    ] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval-data", help="Text to evaluate on; by default held-out rows.")
    ] = None,
    text_column: TextColumn = None,
    control: Annotated[
        ControlName | None, typer.Option(help="Train what a conversion is held against, by the same recipe.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Training tokens of every stage.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of every stage.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="For the recipe's.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep the teacher's outputs here, and take them from here later.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, as in stages.batch_size=16."),
    ] = None,
    overwrite: Overwrite = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop the checkpoints of a stopped run instead of going on.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Retrain a converted model in DIR with its teacher. Run it again to go on where it was stopped."""
    import yaml

    from fffconvert.errors import FFFError, need

    need("accelerate", "distill", "train")
    from fffconvert.controls import Control
    from fffconvert.distillation import distill_model, read_recipe

    settings: dict[str, Any] = {}
    for assignment in set_ or []:
        key, sign, value = assignment.partition("=")
        if not sign:
            raise FFFError(f"--set {assignment} has no value; expected KEY=VALUE")
        settings[key] = yaml.safe_load(value)
    flags = {
        "data.train": data,
        "data.evaluation": evaluation,
        "data.text": text_column,
        "seed": seed,
        "cache": None if cache is None else str(cache),
    }
    settings |= {key: value for key, value in flags.items() if value is not None}
    if tokens is not None and steps is not None:
        raise FFFError("--tokens and --steps were both given; expected one")
    for name, count in (("tokens", tokens), ("steps", steps)):
        if count is not None:
            settings |= {f"stages.{other}": 0 for other in ("tokens", "steps", "epochs")}
            settings[f"stages.{name}"] = count
    chosen = read_recipe(recipe, settings)
    with output(as_json) as out:
        if dry_run:
            out.document({"recipe": chosen})
            out.show(yaml.safe_dump(plain(chosen), sort_keys=False))
            return
        found = distill_model(
            model,
            chosen,
            destination,
            teacher=teacher,
            revision=revision,
            control=Control(control.value) if control else None,
            overwrite=overwrite,
            restart=restart,
        )
        out.document({"output": str(found.output), "training": found.training})
        training = found.training
        loss = "" if training.eval_loss is None else f", held-out loss {training.eval_loss:.4f}"
        out.show(
            f"{training.tokens:,} tokens in {training.steps:,} steps and {training.seconds:,.0f} s "
            f"({training.tokens_per_second:,.0f} tokens/s){loss}",
            f"wrote {found.output}; next: fffconvert eval {found.output}",
        )
