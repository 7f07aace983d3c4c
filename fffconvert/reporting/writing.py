"""From folders to a page, and from a page to files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fffconvert import __version__
from fffconvert.errors import FFFError, need
from fffconvert.evaluation.card import update_card
from fffconvert.figures import figure_class
from fffconvert.hub.metrics import Totals
from fffconvert.reporting.documents import METRICS, Conversion, read_conversion
from fffconvert.reporting.page import Finding, Page, Section, Table, number, percent
from fffconvert.reporting.render import GENERATOR, to_html, to_markdown
from fffconvert.reporting.sections import about, converted, quality, routing, shifted, speed, sweep, training

HTML, MARKDOWN = "report.html", "report.md"
SECTIONS = (
    converted.section,
    quality.section,
    training.section,
    speed.section,
    shifted.robustness,
    shifted.ablation,
    sweep.section,
    routing.section,
    about.recipe,
    about.machine,
    about.limits,
)


@dataclass(frozen=True)
class Report:
    """What `write_report` wrote.

    Attributes:
        html: The page.
        markdown: The same without pictures.
        page: What they say.
    """

    html: Path
    markdown: Path
    page: Page


def write_report(folders: Sequence[str | Path], output: Path | None = None) -> Report:
    """Write one page about one or more converted models.

    Nothing is measured: the page shows what the folders hold, and names the commands for what they do not.

    Args:
        folders: Outputs of `fffconvert convert`, `distill`, `evaluate`, `bench` or `sweep`.
        output: Folder for `report.html` and `report.md`; by default, the one folder that is reported on.

    Raises:
        FFFError: A folder cannot be read, or a report cannot be written; nothing was.
    """
    if not folders:
        raise FFFError("no folder was given; expected one that fffconvert convert, evaluate or sweep wrote")
    if output is None and len(folders) > 1:
        raise FFFError(f"{len(folders)} folders are reported on; say where to write the page with `output`")
    check_tools()
    paths = [Path(folder).expanduser() for folder in folders]
    page = build([read_conversion(path, label) for path, label in zip(paths, _labels(paths), strict=True)])
    target = Path(output).expanduser() if output is not None else paths[0]
    _write(target, {HTML: to_html(page), MARKDOWN: to_markdown(page)})
    for path in paths:
        if (path / METRICS).is_file():
            update_card(path)
    return Report(target / HTML, target / MARKDOWN, page)


def check_tools() -> None:
    """Ask early whether what draws and renders is there.

    Raises:
        FFFError: matplotlib or jinja2 is not installed.
    """
    figure_class("report", "report")
    need("jinja2", "report", "report")


def build(conversions: Sequence[Conversion]) -> Page:
    """Put the page together."""
    bases = list(dict.fromkeys(conversion.base for conversion in conversions))
    findings = tuple(
        Finding(found.tone, f"{conversion.label}: {found.text}" if len(conversions) > 1 else found.text)
        for conversion in conversions
        for found in quality.findings(conversion)
    )
    return Page(
        title=f"Fast feedforward report: {', '.join(bases)}",
        subtitle=f"From {', '.join(conversion.label for conversion in conversions)}.",
        tiles=_tiles(conversions[0]) if len(conversions) == 1 else (),
        overview=_overview(conversions) if len(conversions) > 1 else None,
        findings=findings,
        sections=tuple(_named(section(conversions), conversions) for section in SECTIONS),
        footer=f"Written by fffconvert {__version__}.",
    )


def _named(section: Section, conversions: Sequence[Conversion]) -> Section:
    """The section with its command for the folder and the model, where there is one of each."""
    if len(conversions) != 1:
        return section
    (one,) = conversions
    names = {"DIR": shlex.quote(str(one.folder)), "MODEL": shlex.quote(one.base)}
    command = re.sub(r"\b(DIR|MODEL)\b", lambda match: names[match[1]], section.command)
    return replace(section, command=command)


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names of the folders; whole paths where two are alike."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _tiles(conversion: Conversion) -> tuple[tuple[str, str], ...]:
    tiles = []
    if conversion.metrics and conversion.metrics.blocks:
        found = Totals.of(conversion.metrics.blocks)
        tiles += [
            (percent(found.macs_left), "of the blocks' multiply-adds are left"),
            (percent(found.model_macs_left), "of the whole model's"),
            (f"{found.parameters / found.parameters_before:.2f}x", "parameters stored for the blocks"),
        ]
    if conversion.evaluation:
        for name, task in list(conversion.evaluation.tasks.items())[:2]:
            if task.retained is not None:
                known = task.recovered is not None and not task.recovered_unclear
                more = "" if not known else f"; {percent(task.recovered)} recovered"
                tiles.append((percent(task.retained), f"retained on {name}{more}"))
    best = conversion.benchmark.best if conversion.benchmark else None
    if best is not None:
        cap = "" if best.amdahl_cap is None else f", of at most {best.amdahl_cap:.2f}x"
        size = f"{best.runtime}, {best.batch}x{best.length}"
        tiles.append((f"{best.speedup_vs_torch:.2f}x", f"end to end at best ({size}){cap}"))
    return tuple(tiles)


def _overview(conversions: Sequence[Conversion]) -> Table:
    """The folders side by side."""
    names = list(
        dict.fromkeys(name for c in conversions if c.evaluation is not None for name in c.evaluation.tasks)
    )
    rows = []
    for conversion in conversions:
        if conversion.metrics is None and conversion.evaluation is None:
            continue
        blocks = conversion.metrics.blocks if conversion.metrics else ()
        found = Totals.of(blocks) if blocks else None
        tasks = conversion.evaluation.tasks if conversion.evaluation else {}
        rows.append(
            (
                conversion.label,
                ", ".join(dict.fromkeys(block.shape for block in blocks)) or "–",
                percent(found.macs_left if found else None),
                number(found.r2_median if found else None),
                *(number(tasks[name].value) if name in tasks else "–" for name in names),
            )
        )
    return Table(("folder", "shape", "multiply-adds left", "R² per token", *names), tuple(rows), left=2)


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write all files or none, and replace none that is somebody else's."""
    try:
        for name in texts:
            path = folder / name
            if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
                raise FFFError(f"{path} was not written by fffconvert; move it, or choose another `output`")
        folder.mkdir(parents=True, exist_ok=True)
        partial = {name: folder / f".{name}.partial-{os.getpid()}" for name in texts}
        try:
            for name, text in texts.items():
                partial[name].write_text(text, encoding="utf-8")
            for name in texts:
                partial[name].replace(folder / name)
        finally:
            for path in partial.values():
                path.unlink(missing_ok=True)
    except OSError as error:
        raise FFFError(f"cannot write {folder}: {error.strerror}; choose another `output`") from None
