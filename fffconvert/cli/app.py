"""The application, and the commands `info` and `cache`."""

from __future__ import annotations

import platform
import time
from typing import Annotated, Any

import typer

from fffconvert.cli import tables
from fffconvert.cli.adapter import command
from fffconvert.cli.running import OneLineUsage, Output
from fffconvert.records import plain

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
Converted = Annotated[str, typer.Argument(metavar="DIR", help="A folder that convert or distill wrote.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and stop.")]


@command(app)
def info(out: Output) -> None:
    """Print versions, processor, threads, and the backends with the reason for each that is missing."""
    from importlib.metadata import version

    from fffconvert import __version__
    from fffconvert.processor import cpu
    from fffconvert.runtime.backends import BACKENDS

    versions = {"fffconvert": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")}
    processor = plain(cpu())
    listed = [{"name": found.NAME, **plain(found.status())} for found in BACKENDS]
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


@command(app)
def cache(
    out: Output,
    *,
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is listed.")] = False,
    kind: Annotated[
        str | None, typer.Option(help="Only this kind: layers, evaluations, curves or teachers.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Only what was written that long ago.")
    ] = None,
) -> None:
    """List or clear what is stored between runs: layers of stopped conversions, results, teachers' outputs.

    It lies in $FFFCONVERT_CACHE, by default fffconvert in the user's cache folder; what is needed again after
    clearing is computed anew.
    """
    from fffconvert import store

    now = time.time()
    chosen = [
        entry
        for entry in store.entries()
        if kind in (None, entry.kind) and (now - entry.modified) / 86400 >= (older_than or 0)
    ]
    if clear:
        store.remove(chosen)
    rows: dict[str, dict[str, Any]] = {}
    for entry in chosen:
        row = rows.setdefault(entry.kind, {"kind": entry.kind, "entries": 0, "bytes": 0, "oldest_days": 0.0})
        row["entries"] += 1
        row["bytes"] += entry.bytes
        row["oldest_days"] = round(max(row["oldest_days"], (now - entry.modified) / 86400), 2)
    total = sum(entry.bytes for entry in chosen)
    out.document({"folder": str(store.root()), "cleared": clear, "rows": list(rows.values()), "bytes": total})
    out.show(
        tables.stored(list(rows.values())),
        f"{'deleted' if clear else 'stored'}: {len(chosen)} entries, {total / 1e6:,.1f} MB in {store.root()}",
    )
