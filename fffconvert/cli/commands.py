"""The commands `inspect`, `convert`, `demo` and `info`."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fffconvert.cli import tables
from fffconvert.cli.reporting import OneLineUsage, Output, one_line_errors, output
from fffconvert.planning import LayerForm
from fffconvert.records import plain

if TYPE_CHECKING:
    from fffconvert.conversion import ConvertedModel

app = typer.Typer(
    name="fffconvert",
    cls=OneLineUsage,
    help="Replace the feedforward blocks of pretrained transformers by fast feedforward (FFF) trees.",
    rich_markup_mode=None,  # brackets in help, as in pkg:DIST[/PATH], are text
    context_settings={"max_content_width": 110},
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hub id, folder, .gguf file, or pkg:DIST[/PATH]: a folder inside a package."
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the model brings along.")
]
MinExpansion = Annotated[
    float, typer.Option(min=0.0, help="Least d_hidden / d_model; narrower blocks are taken for adapters.")
]
TextColumn = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of rows of data that holds text; may be repeated. Usual names are found without."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output of fffconvert once the new one is complete.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks, and what other libraries log.")]


@app.command()
@one_line_errors
def inspect(
    model: Model,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    min_expansion: MinExpansion = 1.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the feedforward blocks of MODEL, and what was skipped. Reads its config, no weights."""
    from fffconvert.inspection import inspect_model

    with output(as_json) as out:
        found = inspect_model(
            model, revision=revision, trust_remote_code=trust_remote_code, min_expansion=min_expansion
        )
        out.document(found)
        if found["blocks"]:
            share = sum(block["macs_share"] for block in found["blocks"])
            parameters = sum(block["parameters"] for block in found["blocks"])
            out.show(
                tables.blocks(found["blocks"]),
                f"{len(found['blocks'])} blocks, {parameters:,} parameters, {share:.1%} of the multiply-adds",
            )
        if found["layers"]:
            out.show(tables.layers(found["layers"]))
        if found["skipped"]:
            out.show(tables.skipped(found["skipped"]))
        if found["blocks"]:
            out.show(f"next: fffconvert convert {model} --depth 11 -o OUTPUT")


@app.command()
@one_line_errors
def convert(
    model: Model,
    destination: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    depth: Annotated[
        int | None, typer.Option(help="Depth D of each tree: D + 1 neurons a token, 2^(D+1) - 1 in all.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Shapes of the layers, as fffconvert plan writes them, for depth.")
    ] = None,
    trees: Annotated[int, typer.Option(help="Trees side by side.")] = 1,
    trunk: Annotated[int, typer.Option(help="Rank of the always-active linear map; 0 for none.")] = 0,
    leaf_width: Annotated[
        int,
        typer.Option(help="Neurons of the dense block at each path's end, taken from the original."),
    ] = 0,
    leaf_sparsity: Annotated[
        float,
        typer.Option(help="Share of a leaf's neurons that a token skips, those of small activation."),
    ] = 0.0,
    layer: Annotated[
        LayerForm, typer.Option(help="An output row per branch fits better; per node is the paper's.")
    ] = LayerForm.BRANCH,
    include: Annotated[
        list[str] | None, typer.Option(help="Only blocks that match, as in 'encoder.layer.0'.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not the blocks that match.")] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to fit on: .txt or .jsonl files, or a datasets name; by default, Python's own docs."
        ),
    ] = None,
    text_column: TextColumn = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens.")] = 100_000,
    length: Annotated[
        int,
        typer.Option(help="Longest calibration sequence, in tokens; as long as those the model is used on."),
    ] = 128,
    seed: Annotated[int, typer.Option(help="Order of the calibration text.")] = 0,
    sequential: Annotated[
        bool, typer.Option(help="Fit each block on what the converted ones before it give, or the originals.")
    ] = True,
    refine: Annotated[
        int, typer.Option(help="Passes of gradient steps that refine each layer on its block's output.")
    ] = 0,
    min_expansion: MinExpansion = 1.0,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Replace MODEL's feedforward blocks by FFF layers, fitted to what they do, and save the model."""
    from fffconvert.conversion import convert_model
    from fffconvert.errors import FFFError
    from fffconvert.planning.file import read_shapes
    from fffconvert.recipe import Recipe

    if (depth is None) == (plan is None):
        raise FFFError("expected exactly one of --depth and --plan")
    with output(as_json) as out:
        recipe = Recipe(
            depth=depth or 0,
            shapes={} if plan is None else read_shapes(plan),
            refine=refine,
            trees=trees,
            trunk=trunk,
            leaf_width=leaf_width,
            leaf_sparsity=leaf_sparsity,
            layer=layer,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            tokens=tokens,
            length=length,
            min_expansion=min_expansion,
            seed=seed,
            sequential=sequential,
            text_columns=tuple(text_column or ()),
        )
        done = convert_model(
            model,
            recipe,
            destination,
            calibration=calibration or (),
            revision=revision,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            dry_run=dry_run,
        )
        _show_conversion(out, done, dry_run)


def _show_conversion(out: Output, done: ConvertedModel, dry_run: bool) -> None:
    from fffconvert.hub.card import EXPECT, SAVINGS
    from fffconvert.hub.metrics import Totals

    rows = plain(done.results)
    seconds = round(done.seconds, 1)
    out.document({"output": str(done.output), "seconds": seconds, "dry_run": dry_run, "blocks": rows})
    out.show(tables.layers(rows))
    if dry_run:
        out.show("dry run: nothing was fitted or written")
        return
    out.show(
        tables.routing(rows),
        *Totals.of(done.results).lines(),
        EXPECT,
        SAVINGS,
        f"wrote {done.output} in {seconds:.0f} s; next: fffconvert inspect {done.output}",
        f"in Python: import fffconvert; transformers.AutoModel.from_pretrained({str(done.output)!r})",
    )


@app.command()
@one_line_errors
def demo(
    destination: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("demo-out"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Convert a small sentence encoder that comes as a Python package, and compare it with the original."""
    from fffconvert.demo import run_demo
    from fffconvert.hub.card import EXPECT, SAVINGS
    from fffconvert.hub.metrics import Totals

    with output(as_json) as out:
        report = run_demo(destination, overwrite=overwrite, progress=out.show)
        out.document(report)
        out.show(
            tables.layers(plain(report["blocks"])),
            tables.similarity(report["similarity"]),
            _verdict(report["similarity"], report["verdict"]),
            *Totals.of(report["blocks"]).lines(),
            f"Weights: {report['bytes'] / 1e6:.0f} MB, {report['bytes_before'] / 1e6:.0f} MB before.",
            EXPECT,
            SAVINGS,
            f"All in {report['output']}: weights, tokenizer, README.md, fffconvert.yaml, metrics.json",
            f"{report['seconds']:.0f} s; next: fffconvert inspect {report['output']}",
        )


def _verdict(similarity: Mapping[str, Mapping[str, float]], found: str) -> str:
    original, converted, ablated = (
        similarity[name]["spearman_with_grades"] for name in ("original", "converted", "ablated")
    )
    retained, without = converted / original, ablated / original
    said = {
        "better": "more than chance explains",
        "worse": "less than without the blocks: the trees bought nothing here",
        "undecided": "these few pairs cannot tell the two apart",
    }
    return (
        f"Of the original's rank correlation {retained:.1%} is retained; {without:.1%} without the blocks "
        f"({said[found]})."
    )


@app.command()
@one_line_errors
def info(as_json: AsJson = False, debug: Debug = False) -> None:
    """Print versions, processor, threads, and the backends with the reason for each that is missing."""
    from importlib.metadata import version

    from fffconvert import __version__
    from fffconvert.runtime.backends import backends, cpu

    with output(as_json) as out:
        versions = {"fffconvert": __version__, "python": platform.python_version()}
        versions |= {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")}
        processor, listed = plain(cpu()), plain(backends())
        out.document({"versions": versions, "cpu": processor, "backends": listed})
        out.show(
            tables.pairs(versions),
            tables.pairs({**processor, "features": " ".join(processor["features"])}),
            tables.pairs(
                {
                    row["name"]: ("available: " if row["available"] else "missing: ") + row["reason"]
                    for row in listed
                }
            ),
        )
