"""One page about a converted model: what was converted, what was retained, against whom, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fffconvert.errors import FFFError, need
from fffconvert.options import ReportOptions, verb
from fffconvert.reporting.writing import Report, write_report

__all__ = ["Report", "report"]


@verb(ReportOptions)
def report(folders: Sequence[str | Path] | str | Path, options: ReportOptions) -> Report:
    """Write one page about converted models: quality beside controls, speed, routing, and what is missing.

    Without `full` nothing is measured: the page shows what the folders hold, and names the commands for what
    they do not.

    Args:
        folders: What convert, distill, evaluate, bench or sweep wrote; with `full`, the name of one model.

    Raises:
        FFFError: A folder cannot be read, or a report cannot be written; nothing was.
    """
    names = [folders] if isinstance(folders, str | Path) else list(folders)
    if not options.full:
        return write_report(names, options.output)
    if len(names) != 1:
        raise FFFError(f"{len(names)} models were given; `full` expects one")
    need("accelerate", "report --full", "train")
    need("sklearn", "report --full", "eval")
    from fffconvert.reporting.full import full_report  # it needs what was just asked for

    return full_report(str(names[0]), options)
