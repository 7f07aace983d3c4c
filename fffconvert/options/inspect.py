"""Options of the commands `inspect` and `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fffconvert.options.common import Reading, Writing
from fffconvert.options.fields import option


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Reading):
    """What is taken for a feedforward block.

    Attributes:
        min_expansion: Least d_hidden / d_model; narrower blocks are taken for adapters.
    """

    min_expansion: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Writing):
    """Where the demonstration writes.

    Attributes:
        output: Folder to write.
    """

    output: Path = option(Path("demo-out"), short="-o")
