"""The command `deploy`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from fffconvert.cli import tables
from fffconvert.cli.commands import AsJson, Debug, Model, RemoteCode, app
from fffconvert.cli.reporting import one_line_errors, output


@app.command()
@one_line_errors
def deploy(
    model: Model,
    backend: Annotated[str, typer.Option(help="auto, cpu, cupy or reference.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Row type: auto, float32, bfloat16 or int8.")] = "auto",
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time what can compute the layers of a converted MODEL here, and show what deploy chooses for each."""
    from fffconvert.deploy import TOKENS, deploy_model

    with output(as_json) as out:
        rows = [
            dataclasses.asdict(layer)
            for layer in deploy_model(model, backend, dtype, trust_remote_code=trust_remote_code)
        ]
        out.document({"model": model, "tokens": TOKENS, "layers": rows})
        out.show(
            tables.deployments(rows, TOKENS),
            "error: what the row type changes in the outputs, relative root mean square on random inputs",
            f"in Python: model = fffconvert.deploy(model, backend={backend!r}, dtype={dtype!r})",
        )
