"""The command `fit-report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fffconvert.cli import fit_tables
from fffconvert.cli.commands import AsJson, Debug, app
from fffconvert.cli.reporting import one_line_errors, output


@app.command("fit-report")
@one_line_errors
def fit_report(
    data: Annotated[Path, typer.Option(help="Folder of the evaluation data.")],
    tokens: Annotated[int, typer.Option(min=4096, help="Calibration tokens of the encoder.")] = 500_000,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this section: blocks, sts, mlm or lm; may be repeated.")
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Folder for what has been measured; a stopped report goes on from there.")
    ] = Path("fit-report"),
    passes: Annotated[
        int, typer.Option(min=1, help="Passes of a dense control over the tokens at most.")
    ] = 30,
    refine_passes: Annotated[int, typer.Option(min=0, help="The same of refined layers; 0 for none.")] = 4,
    mlm_tokens: Annotated[
        int, typer.Option(min=2048, help="Calibration tokens of the masked language model.")
    ] = 200_000,
    lm_tokens: Annotated[
        int, typer.Option(min=2048, help="Calibration tokens of the causal model.")
    ] = 100_000,
    lm_test_tokens: Annotated[
        int, typer.Option(min=512, help="Tokens on which its perplexity is measured.")
    ] = 300_000,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure conversions of real models without end-to-end training, beside their controls."""
    from fffconvert.errors import FFFError
    from fffconvert.fitreport import SECTIONS
    from fffconvert.fitreport import fit_report as measure
    from fffconvert.fitreport.blocks import Effort
    from fffconvert.fitreport.report import Settings

    for name in only or ():
        if name not in SECTIONS:
            raise FFFError(f"--only is {name!r}; expected one of {', '.join(SECTIONS)}")
    settings = Settings(
        tokens=tokens,
        mlm_tokens=mlm_tokens,
        lm_tokens=lm_tokens,
        lm_test_tokens=lm_test_tokens,
        effort=Effort(passes, refine_passes),
    )
    with output(as_json) as out:
        report = measure(data, work, settings, only or SECTIONS, lambda line: typer.echo(line, err=True))
        out.document(report)
        out.show(*fit_tables.report(report))
