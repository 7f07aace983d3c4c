"""The command line. It prints; the work is done by the modules before it, and `options` says what they take.

Neither torch nor transformers is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

# Each registers its commands, in the order in which `--help` lists them.
from fffconvert.cli import (  # noqa: F401  isort: skip
    converting,
    training,
    measuring,
    serving,
    benchmarking,
    estimating,
)
from fffconvert.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the `fffconvert` command."""
    app()
