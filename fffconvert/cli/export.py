"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fffconvert.cli.commands import AsJson, Debug, Model, RemoteCode, app
from fffconvert.cli.reporting import one_line_errors, output

HOW = {
    "onnx": "in Python: options = onnxruntime.SessionOptions(); fffconvert.register_onnxruntime(options)",
    "onnx-standard": "any runtime for ONNX reads it as it is",
    "aot": "in Python: import fffconvert.runtime; torch._inductor.aoti_load_package(FILE)",
}


@app.command()
@one_line_errors
def export(
    model: Model,
    destination: Annotated[Path, typer.Option("--output", "-o", help="File to write, .onnx or .pt2.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx: trees as one operator of ONNX Runtime; onnx-standard: standard operators alone; "
            "aot: compiled ahead of time by torch for this machine.",
        ),
    ] = "onnx",
    dtype: Annotated[str, typer.Option(help="Row type of the trees: float32, bfloat16 or int8.")] = "float32",
    quantize_linear: Annotated[
        str, typer.Option(help="Linear layers beside the trees in ONNX files: int8 or none.")
    ] = "none",
    trust_remote_code: RemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a converted MODEL as one file for another runtime."""
    from fffconvert.deployment.export import export_folder

    with output(as_json) as out:
        written = export_folder(
            model,
            form,
            destination,
            dtype=dtype,
            quantize_linear=quantize_linear,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
        )
        size = written.stat().st_size
        out.document({"model": model, "format": form, "output": str(written), "bytes": size})
        out.show(f"wrote {written}, {size / 1e6:,.0f} MB", HOW[form])
