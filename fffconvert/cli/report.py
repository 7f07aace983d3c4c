"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fffconvert.cli.commands import AsJson, Debug, app
from fffconvert.cli.reporting import Output, one_line_errors, output

if TYPE_CHECKING:
    from fffconvert.report import Report


@app.command()
@one_line_errors
def report(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="Folders that convert, distill, eval or sweep wrote."),
    ],
    destination: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for report.html and report.md; by default, DIR."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write one page about converted models: quality beside controls, speed, routing, and what is missing."""
    from fffconvert.report import report as write

    with output(as_json) as out:
        _show(out, write(folders, destination))


def _show(out: Output, done: Report) -> None:
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
