"""Options of `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fffconvert.errors import FFFError
from fffconvert.options.common import Calibrated
from fffconvert.options.fields import option

BUDGETS = {"budget": 0.0, "speedup": 1.0, "max_error": 0.0}
"""What can be asked for, and the value that it must exceed."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Calibrated):
    """How much a plan may spend, and on what text the blocks are measured.

    Attributes:
        output: File to write, for `plan` of convert.
        budget: Share of the blocks' multiply-adds that may be left, as in 0.05.
        speedup: The whole model's multiply-adds before over after.
        max_error: Mean error (1 - R² per token) of the blocks that may be left.
        plot: Draw each block's curve of error to this file.
    """

    output: Path | None = option(None, short="-o", required=True)
    budget: float | None = None
    speedup: float | None = None
    max_error: float | None = None
    plot: Path | None = None
    tokens: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
        for name, value in given.items():
            if not value > BUDGETS[name]:
                raise FFFError(f"`{name}` is {value}; expected more than {BUDGETS[name]:g}")
        if len(given) != 1:
            raise FFFError("expected exactly one of `budget`, `speedup` and `max_error`")
