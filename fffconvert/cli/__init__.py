"""The command line. It parses and prints; the work is done by the modules below it.

Neither torch nor transformers is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

from fffconvert.cli import fit_report, plan
from fffconvert.cli.commands import app

__all__ = ["app", "fit_report", "main", "plan"]


def main() -> None:
    """Run the `fffconvert` command."""
    app()
