"""Options of `report`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from fffconvert.errors import FFFError
from fffconvert.options.common import Texts
from fffconvert.options.fields import option


def _silent(line: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class ReportOptions(Texts):
    """What a report shows, and with `full` what is made for it.

    Attributes:
        output: Folder for report.html and report.md; by default the one folder that is reported on.
        full: Convert the model at two budgets, train it and its controls, evaluate, sweep; then report.
        data_dir: With `full`: folder of the evaluation data, as in evaluate.
        calibration: With `full`: text to fit and train on; by default English of the data folder.
        tokens: With `full`: calibration tokens, those held out included.
        train_tokens: With `full`: tokens that conversions and controls are trained on; 0 for none.
        limit: With `full`: examples of each task at most, for a quick look.
        progress: With `full`: is told about each step.
    """

    output: Path | None = option(None, short="-o")
    _: KW_ONLY
    full: bool = False
    data_dir: Path | None = None
    calibration: Iterable[Any] | None = None
    tokens: int = 50_000
    train_tokens: int = 200_000
    limit: int | None = None
    progress: Callable[[str], None] = option(_silent, python=True)

    def __post_init__(self) -> None:
        if self.full and (self.output is None or self.data_dir is None):
            raise FFFError("`full` expects one model, `data_dir` and `output`")
        if self.train_tokens < 0 or (self.limit is not None and self.limit < 2):
            raise FFFError("`train_tokens` and `limit`: expected from 0, and from 2")
        for name in ("data_dir", "calibration", "tokens", "train_tokens", "limit", "text_columns", "lines"):
            if not self.full and getattr(self, name) != getattr(type(self), name):
                raise FFFError(f"`{name}` belongs to `full`; without it nothing is measured")
