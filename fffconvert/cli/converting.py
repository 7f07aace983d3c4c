"""The commands `inspect`, `plan`, `convert` and `demo`."""

from __future__ import annotations

from collections.abc import Mapping

from fffconvert.cli import tables
from fffconvert.cli.adapter import command
from fffconvert.cli.app import DryRun, Model, app
from fffconvert.cli.running import Output
from fffconvert.options import ConvertOptions, PlanOptions, values_of
from fffconvert.options.inspect import DemoOptions, InspectOptions
from fffconvert.records import plain


@command(app, InspectOptions)
def inspect(out: Output, model: Model, options: InspectOptions) -> None:
    """List the feedforward blocks of MODEL, and what was skipped. Reads its config, no weights."""
    from fffconvert.inspection import inspect_model

    found = inspect_model(model, **values_of(options))
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


@command(app, PlanOptions)
def plan(out: Output, model: Model, options: PlanOptions) -> None:
    """Measure what each block of MODEL needs, and spend a budget of multiply-adds where it helps most."""
    from fffconvert.planning.search import plan as make

    found = make(model, **values_of(options))
    dense = {curve.name: curve for curve in found.curves}
    choices = {
        name: next(c for c in dense[name].choices if block.shape | c.shape == block.shape)
        for name, block in found.blocks.items()
    }
    rows = [
        {
            "name": name,
            **block.shape,
            "active_fraction": choices[name].macs / dense[name].macs,
            "expected_error": choices[name].error,
            "parameters": choices[name].parameters,
            "sensitivity": dense[name].sensitivity,
            "curve": dense[name].choices,
        }
        for name, block in found.blocks.items()
    ]
    out.document({"output": str(options.output), "blocks": rows})
    left = sum(choice.macs for choice in choices.values()) / sum(curve.macs for curve in found.curves)
    out.show(
        tables.plan(rows),
        f"the blocks keep {left:.1%} of their multiply-adds",
        f"wrote {options.output}; next: fffconvert convert {model} --plan {options.output} -o OUTPUT",
    )


@command(app, ConvertOptions)
def convert(out: Output, model: Model, options: ConvertOptions, *, dry_run: DryRun = False) -> None:
    """Replace MODEL's feedforward blocks by FFF layers, fitted to what they do, and save the model."""
    from fffconvert.conversion import convert_model
    from fffconvert.hub.card import EXPECT, SAVINGS
    from fffconvert.hub.metrics import Totals

    done = convert_model(model, options, dry_run=dry_run)
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


@command(app, DemoOptions)
def demo(out: Output, options: DemoOptions) -> None:
    """Convert a small sentence encoder that comes as a Python package, and compare it with the original."""
    from fffconvert.demo import run_demo
    from fffconvert.hub.card import EXPECT, SAVINGS
    from fffconvert.hub.metrics import Totals

    report = run_demo(options.output, overwrite=options.overwrite, progress=out.show)
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
