"""The command `bench`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fffconvert.cli import bench_model, bench_tables
from fffconvert.cli.commands import AsJson, Debug, RemoteCode, app
from fffconvert.cli.reporting import Output, one_line_errors, output
from fffconvert.errors import FFFError


@app.command()
@one_line_errors
def bench(
    whole: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A converted or deployed folder; any model with --depth."),
    ] = None,
    layer: Annotated[bool, typer.Option("--layer", help="Measure FFF layers against dense blocks.")] = False,
    shape: Annotated[
        str | None,
        typer.Option(help="Dense block replaced, D_MODELxD_HIDDEN; 768x3072, or that of --model."),
    ] = None,
    trees: Annotated[int, typer.Option(help="Trees side by side.")] = 1,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Depth of each tree, 11 for --layer; of random ones, where MODEL is not converted."
        ),
    ] = None,
    forest: Annotated[
        list[str] | None, typer.Option(help="A further layer, TREESxDEPTH, as in 8x8; may be repeated.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Tokens in one call.")] = "1,8,32,128,512,2048,16384",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[str, typer.Option(help="Threads of torch, on the CPU.")] = "1",
    dtype: Annotated[
        str, typer.Option(help="Row types: float32,bfloat16,int8, on CUDA float16 too; by default, all.")
    ] = "",
    backend: Annotated[
        str, typer.Option(help="cpu,reference, or cupy,reference on CUDA; by default, those that run here.")
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(help="Measure with the real activations of this model's blocks too, or of its layers."),
    ] = None,
    block: Annotated[
        list[str] | None, typer.Option(help="Blocks of the model, as in layer.0; by default its middle one.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Forward plus backward.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw time against depth 4 to 15 into this file (.png, .svg, .pdf).")
    ] = None,
    plot_tokens: Annotated[str, typer.Option(help="Token counts in the plot.")] = "1,128,2048",
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Try torch.compile on the dense blocks.")
    ] = True,
    baselines: Annotated[
        str, typer.Option(help="For MODEL: torch,compile,ort,ort-int8,openvino, or some of them.")
    ] = "torch,ort-int8",
    sizes: Annotated[str, typer.Option(help="For MODEL: BATCHxLENGTH of its inputs.")] = "1x32,1x128,8x128",
    generate: Annotated[
        int, typer.Option(help="For a causal MODEL: tokens to generate one by one; 0 for none.")
    ] = 0,
    original: Annotated[
        str | None, typer.Option(help="For MODEL: the dense model, where its config does not tell.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile/--no-profile", help="For MODEL: time its parts too.")
    ] = True,
    task: Annotated[
        str, typer.Option(help="For MODEL: similarity task on which every runtime is scored, as in sts-b.")
    ] = "",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the task's data, as in eval; by default, the hub.")
    ] = None,
    destination: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="For MODEL: file to write; by default bench.json in its folder."),
    ] = None,
    trust_remote_code: RemoteCode = False,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each contestant and figure: 0.3, or 3 for MODEL.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Least calls of each contestant.")] = 7,
    limit: Annotated[
        float, typer.Option(help="For --layer: seconds after which a contestant makes no further call.")
    ] = 2.0,
    seed: Annotated[int, typer.Option(help="Of weights and random inputs.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure speed, outputs checked: a whole MODEL against its original, or with --layer FFF layers."""
    if layer == (whole is not None):
        raise FFFError(
            "expected either MODEL or --layer; name a folder, as in fffconvert bench FOLDER, or give --layer"
        )
    if whole is not None:
        bench_model.run(
            as_json,
            destination,
            model=whole,
            baselines=_words(baselines),
            sizes=tuple(_pair("--sizes", size) for size in _words(sizes)),
            threads=_numbers("--threads", threads)[0],
            generate=generate,
            depth=depth,
            trees=trees,
            original=original,
            profile=profile,
            seconds=3.0 if seconds is None else seconds,
            trust_remote_code=trust_remote_code,
            task=task,
            data_dir=data_dir,
        )
        return
    from fffconvert.benchmarks import LayerBench, bench_layer
    from fffconvert.benchmarks.depths import draw

    with output(as_json) as out:
        settings = LayerBench(
            shape=None if shape is None else _pair("--shape", shape),
            forests=(
                (trees, 11 if depth is None else depth),
                *(_pair("--forest", text) for text in forest or ()),
            ),
            tokens=_numbers("--tokens", tokens),
            threads=_numbers("--threads", threads),
            device=device,
            dtypes=_words(dtype),
            backends=_words(backend),
            model=model,
            blocks=tuple(block or ()),
            train=train,
            plot=plot,
            plot_tokens=_numbers("--plot-tokens", plot_tokens),
            compile=compile_,
            seconds=0.3 if seconds is None else seconds,
            repeats=repeats,
            limit=limit,
            seed=seed,
        )
        found = bench_layer(settings)
        if plot is not None:
            draw(found["depths"], plot)
        out.document(found)
        _show(out, found, plot)


def _show(out: Output, found: Mapping[str, Any], plot: Path | None) -> None:
    out.show(*(f"warning: {text}" for text in found["warnings"]))
    out.show(bench_tables.machine(found["machine"]))
    for group in bench_tables.groups(found["rows"]):
        out.show(bench_tables.rows(group))
    legend = bench_tables.LEGEND if found["published"] is None else bench_tables.CUDA_LEGEND
    out.show(bench_tables.summary(found["summary"]), *legend)
    out.show(*bench_tables.beside_published(found), *bench_tables.skipped(found["rows"]))
    if not found["settings"]["compile"]:
        out.show("torch.compile was left out (--no-compile): the dense blocks may be faster than shown.")
    out.show(*(f"not measured: {text}" for text in found["problems"]))
    if plot is not None:
        out.show(f"wrote {plot}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words):
        raise FFFError(f"{flag} is {text!r}; expected whole numbers with commas between, as in 1,8,32")
    return tuple(map(int, words))


def _pair(flag: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text.lower())
    if found is None:
        raise FFFError(f"{flag} is {text!r}; expected two numbers with an x between, as in 8x8")
    return int(found[1]), int(found[2])
