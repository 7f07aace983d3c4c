"""Conversions without end-to-end training, beside the controls that they must beat.

python -m recipes.experiments.fit_report --data DATA [--only sts] [--json]

A stopped report goes on where it stopped: fitted blocks and evaluations are stored, conversions are folders.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import fffconvert as fff
from recipes.experiments.fit_report import tables
from recipes.experiments.fit_report.blocks import TOKENS, Effort, compare_blocks
from recipes.experiments.fit_report.models import COMPARISONS, compare_models


class Section(str, Enum):
    """Parts of the report."""

    BLOCKS = "blocks"
    STS = "sts"
    MLM = "mlm"
    LM = "lm"


def report(
    data: Annotated[Path, typer.Option(help="Folder of the evaluation data.")],
    only: Annotated[list[Section] | None, typer.Option(help="Only this section; may be repeated.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for the converted models.")] = Path("fit-report"),
    tokens: Annotated[
        int | None,
        typer.Option(help="Calibration tokens; 500,000 by default (mlm 200,000, lm 100,000)."),
    ] = None,
    passes: Annotated[
        int, typer.Option(min=1, help="Passes of a dense control over the tokens at most.")
    ] = 30,
    refine_passes: Annotated[int, typer.Option(min=0, help="The same of refined layers; 0 for none.")] = 4,
    limit: Annotated[int | None, typer.Option(help="Examples of each task, for a quick look.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure conversions of real models without end-to-end training, beside their controls."""
    found: dict[str, Any] = {}
    try:
        for section in only or Section:
            if section is Section.BLOCKS:
                found["blocks"] = compare_blocks(data, tokens or TOKENS, Effort(passes, refine_passes))
            else:
                chosen = COMPARISONS[section.value]
                found[section.value] = compare_models(
                    chosen, data, work, tokens=tokens or chosen.tokens, passes=passes, limit=limit
                )
    except fff.FFFError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for table in tables.report(found):
        Console().print(table)


if __name__ == "__main__":
    typer.run(report)
