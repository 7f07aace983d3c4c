"""The command `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fffconvert.cli import eval_tables
from fffconvert.cli.commands import AsJson, Debug, Model, RemoteCode, Revision, TextColumn, app
from fffconvert.cli.reporting import one_line_errors, output

TASKS = (
    "sts-b, sts12 to sts16, sick-r (or sts), retrieval, probe-ag-news, probe-imdb, probe-mr, probe-subj, "
    "probe-20newsgroups (or probe), cola, sst-2, mrpc, glue-sts-b, qqp, mnli, mnli-mm, qnli, rte, wnli "
    "(or glue), mlm, pseudo-perplexity, perplexity, agreement, token-agreement, robustness, ablation, routing"
)


@app.command("eval")
@one_line_errors
def evaluate(
    model: Model,
    task: Annotated[
        list[str],
        typer.Option(help=f"What to measure; may be repeated: {TASKS}."),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model before conversion; by default what DIR says it was."),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="A model to hold it against, as in ablated=FOLDER; may be repeated.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of local task data; by default data comes from the hub.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text of the language model tasks: .txt or .jsonl; by default WikiText-2 test."),
    ] = None,
    text_column: TextColumn = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Examples of each task at most, for a quick look.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of tasks that train; the median counts.")] = 1,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes of tasks that train over their training rows.")
    ] = 5,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of kept results; a stopped evaluation goes on from there."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")] = "cpu",
    destination: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File for the results, besides eval.json in a converted model's folder."
        ),
    ] = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure what MODEL can do, beside its teacher and controls, with 95 % intervals."""
    from fffconvert.errors import FFFError
    from fffconvert.evaluation import evaluate as measure

    controls = {}
    for given in control or ():
        name, found, other = given.partition("=")
        if not (name and found and other):
            raise FFFError(f"--control is {given!r}; expected NAME=MODEL, as in ablated=./ablated")
        controls[name] = other
    with output(as_json) as out:
        results = measure(
            model,
            task,
            teacher=teacher,
            controls=controls,
            data_dir=data_dir,
            texts=text or (),
            text_columns=text_column or (),
            limit=limit,
            seeds=seeds,
            epochs=epochs,
            cache=cache,
            output=destination,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        out.document(results)
        out.show(*eval_tables.results(results))
