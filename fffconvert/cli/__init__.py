"""The command line. It parses and prints; the work is done by the modules below it.

Neither torch nor transformers is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

# Each registers its command.
from fffconvert.cli import (  # noqa: F401
    bench,
    deploy,
    distill,
    estimate,
    eval,
    export,
    fit_report,
    plan,
    report,
    sweep,
)
from fffconvert.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the `fffconvert` command."""
    app()
