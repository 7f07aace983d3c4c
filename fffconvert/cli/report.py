"""The command `report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fffconvert.cli.commands import AsJson, Debug, TextColumn, app
from fffconvert.cli.reporting import Output, one_line_errors, output

if TYPE_CHECKING:
    from fffconvert.reporting import Report

TOKENS, TRAIN_TOKENS = 50_000, 200_000


@app.command()
@one_line_errors
def report(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR",
            help="Folders that convert, distill, eval, bench or sweep wrote; with --full, a model.",
        ),
    ],
    destination: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for report.html and report.md; by default, DIR."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Convert the model at two budgets, train it and its controls, evaluate, sweep; then report.",
        ),
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="With --full: folder of the evaluation data, as in eval.")
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="With --full: text to fit and train on; by default, English of the data folder."),
    ] = None,
    text_column: TextColumn = None,
    tokens: Annotated[
        int | None, typer.Option(help=f"With --full: calibration tokens; {TOKENS:,} by default.")
    ] = None,
    train_tokens: Annotated[
        int | None,
        typer.Option(
            min=0, help=f"With --full: tokens to train on, 0 for none; {TRAIN_TOKENS:,} by default."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=2, help="With --full: examples of each task at most, for a quick look."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write one page about converted models: quality beside controls, speed, routing, and what is missing."""
    from fffconvert.errors import FFFError, need

    only_full = {
        "--data-dir": data_dir,
        "--calibration": calibration,
        "--text-column": text_column,
        "--tokens": tokens,
        "--train-tokens": train_tokens,
        "--limit": limit,
    }
    with output(as_json) as out:
        if not full:
            given = [name for name, value in only_full.items() if value is not None]
            if given:
                raise FFFError(f"{given[0]} belongs to --full; without it nothing is measured")
            from fffconvert.reporting import report as write

            _show(out, write(folders, destination))
            return
        if len(folders) != 1 or destination is None or data_dir is None:
            raise FFFError("--full expects one MODEL, --data-dir and -o")
        need("accelerate", "report --full", "train")
        need("sklearn", "report --full", "eval")
        from fffconvert.reporting.full import FullSettings, full_report

        settings = FullSettings(
            data_dir,
            tuple(calibration or ()),
            TOKENS if tokens is None else tokens,
            TRAIN_TOKENS if train_tokens is None else train_tokens,
            limit,
            tuple(text_column or ()),
        )
        progress: Callable[[str], None] = out.show
        _show(out, full_report(folders[0], destination, settings, progress))


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
