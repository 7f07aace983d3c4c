"""The commands `deploy` and `export`."""

from __future__ import annotations

from fffconvert.cli import tables
from fffconvert.cli.adapter import command
from fffconvert.cli.app import Converted, app
from fffconvert.cli.running import Output
from fffconvert.options import DeployOptions, ExportOptions, values_of
from fffconvert.records import plain

HOW = {
    "onnx": "in Python: options = onnxruntime.SessionOptions(); fffconvert.register_onnxruntime(options)",
    "onnx-standard": "any runtime for ONNX reads it as it is",
    "aot": "in Python: import fffconvert.runtime; torch._inductor.aoti_load_package(FILE)",
}


@command(app, DeployOptions)
def deploy(out: Output, model: Converted, options: DeployOptions) -> None:
    """Choose by timing how a converted model computes fastest here, check it, and write it ready to load."""
    from fffconvert.deployment import TOKENS, deploy_folder

    _, done = deploy_folder(model, options)
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
        chosen = ", ".join(f"{n}={getattr(options, n)!r}" for n in ("backend", "dtype", "quantize_linear"))
        out.show(f"in Python: model = fffconvert.deploy(model, {chosen}); or write a folder with -o")


@command(app, ExportOptions)
def export(out: Output, model: Converted, options: ExportOptions) -> None:
    """Write a converted model as one file for another runtime."""
    from fffconvert.deployment import export as write

    written = write(model, **values_of(options))
    size = written.stat().st_size
    out.document({"model": model, "format": options.format, "output": str(written), "bytes": size})
    out.show(f"wrote {written}, {size / 1e6:,.0f} MB", HOW[options.format])
