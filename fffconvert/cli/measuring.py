"""The commands `evaluate`, `sweep` and `report`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from fffconvert.cli import evaluation_tables
from fffconvert.cli.adapter import command
from fffconvert.cli.app import Model, app
from fffconvert.cli.running import Output
from fffconvert.options import EvaluateOptions, ReportOptions, SweepOptions, values_of


@command(app, EvaluateOptions)
def evaluate(out: Output, model: Model, options: EvaluateOptions) -> None:
    """Measure what MODEL can do, beside its teacher and controls, with 95 % intervals."""
    from fffconvert.evaluation import evaluate as measure

    found = measure(model, **values_of(options))
    out.document(found)
    out.show(*evaluation_tables.results(found))


@command(app, SweepOptions)
def sweep(out: Output, model: Model, options: SweepOptions) -> None:
    """Convert MODEL at each point of a grid of trees, depths and leaf widths, and measure every one."""
    from fffconvert.evaluation import sweep as measure

    found = measure(model, **values_of(options))
    out.document(found)
    out.show(*evaluation_tables.sweep(found), f"wrote {options.output}/sweep.json and sweep.png")


@command(app, ReportOptions)
def report(
    out: Output,
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR",
            help="Folders that convert, distill, evaluate, bench or sweep wrote; with --full, a model.",
        ),
    ],
    options: ReportOptions,
) -> None:
    """Write one page about converted models: quality beside controls, speed, routing, and what is missing."""
    from fffconvert.reporting import report as write

    done = write(folders, **values_of(dataclasses.replace(options, progress=out.show)))
    out.document(
        {
            "html": str(done.html),
            "markdown": str(done.markdown),
            "findings": [{"tone": found.tone, "text": found.text} for found in done.page.findings],
            "sections": [
                {
                    "name": section.name,
                    "present": bool(section.parts),
                    "command": None if section.parts else section.command,
                }
                for section in done.page.sections
            ],
        }
    )
    out.show(*(found.text for found in done.page.findings))
    out.show(*(f"not measured yet: {section.title}: {section.command}" for section in done.page.missing))
    out.show(f"wrote {done.html} and {done.markdown}")
