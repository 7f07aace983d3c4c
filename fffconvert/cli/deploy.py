"""The command `deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fffconvert.cli import tables
from fffconvert.cli.commands import AsJson, Debug, Model, Overwrite, RemoteCode, TextColumn, app
from fffconvert.cli.reporting import one_line_errors, output
from fffconvert.records import plain


@app.command()
@one_line_errors
def deploy(
    model: Model,
    destination: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; without one, only look.")
    ] = None,
    target: Annotated[str, typer.Option(help="Where it will run: cpu or cuda.")] = "cpu",
    backend: Annotated[str, typer.Option(help="auto, cpu, cupy or reference.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Row type: auto, float32, bfloat16 or int8.")] = "auto",
    quantize_linear: Annotated[
        str, typer.Option(help="Linear layers beside the trees: int8 (where faster here), or none.")
    ] = "int8",
    max_drop: Annotated[
        float, typer.Option(help="Refuse if the outputs agree with those before by less than 1 minus this.")
    ] = 0.05,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text to compare the outputs on: .txt or .jsonl files, or a datasets name."),
    ] = None,
    text_column: TextColumn = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Choose by timing how a converted MODEL computes fastest here, check it, and write it ready to load."""
    from fffconvert.deployment import TOKENS, Settings, deploy_folder

    with output(as_json) as out:
        settings = Settings(
            target, backend, dtype, quantize_linear, max_drop, tuple(text or ()), tuple(text_column or ())
        )
        done = deploy_folder(
            model, settings, destination, overwrite=overwrite, trust_remote_code=trust_remote_code
        )
        out.document({"model": model, "tokens": TOKENS, **plain(done)})
        out.show(
            tables.deployments(plain(done.layers), TOKENS),
            "error: what the row type changes in the outputs, relative root mean square on random inputs",
        )
        if done.linears:
            out.show(tables.linears(plain(done.linears), TOKENS))
            out.show(f"Attention's dot products: {done.attention}.")
        agreement = done.agreement
        out.show(
            f"Outputs on {agreement.positions:,} positions of {agreement.inputs} agree with those before: "
            f"{agreement.measure} {agreement.value:.4f}, mean cosine {agreement.cosine:.4f}.",
            f"Weights in memory: {done.bytes_after / 1e6:,.0f} MB, {done.bytes_before / 1e6:,.0f} MB before.",
        )
        if done.output is not None:
            out.show(
                f"wrote {done.output}; next: fffconvert bench {done.output}",
                f"in Python: import fffconvert; transformers.AutoModel.from_pretrained({str(done.output)!r})",
            )
        else:
            options = f"backend={backend!r}, dtype={dtype!r}, quantize_linear={quantize_linear!r}"
            out.show(f"in Python: model = fffconvert.deploy(model, {options}); or write a folder with -o")
