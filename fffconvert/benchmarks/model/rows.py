"""`bench.json`: what was measured of a whole model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS = ("fffconvert", "deployed", "undeployed", "exported")
"""How the names of runtimes begin that compute trees; others are baselines."""


@dataclass(frozen=True)
class ModelRow:
    """The whole model's time at one size, in one runtime.

    Attributes:
        runtime: Its name.
        batch: Sequences.
        length: Tokens of each.
        median_ms: Median time of a call.
        p20_ms: A fifth of the calls were faster.
        p80_ms: A fifth of the calls were slower.
        calls: How many.
        tokens_per_second: By the median.
        speedup_vs_torch: Over the original in torch; None where that did not run, as are the next two.
        speedup_vs_ort_int8: Over the original in int8 in ONNX Runtime.
        speedup_vs_undeployed: Over the converted model in plain torch.
        amdahl_cap: What the speed-up would be if the blocks cost nothing.
        max_error: Largest error over the largest output; None for what has no model to compare with.
        median_error: Median over the positions of the relative error.
    """

    runtime: str
    batch: int
    length: int
    median_ms: float
    p20_ms: float | None = None
    p80_ms: float | None = None
    calls: int | None = None
    tokens_per_second: float | None = None
    speedup_vs_torch: float | None = None
    speedup_vs_ort_int8: float | None = None
    speedup_vs_undeployed: float | None = None
    amdahl_cap: float | None = None
    max_error: float | None = None
    median_error: float | None = None

    @property
    def ours(self) -> bool:
        """Whether it computes the converted model, and not a baseline."""
        return self.runtime.startswith(OURS)


@dataclass(frozen=True)
class ProfileRow:
    """Milliseconds by part of the model, at one size, in one runtime."""

    runtime: str
    batch: int
    length: int
    ms: dict[str, float]


@dataclass(frozen=True)
class ModelBenchmark:
    """`bench.json`.

    Attributes:
        model: The model.
        rows: A runtime and size each.
        generation: Tokens generated one by one, by runtime.
        quality: How well each runtime does the task, where there is one.
        runtimes: What each takes to start, and its memory.
        profile: Where the time goes.
        machine: What was measured on.
        problems: What could not be measured.
        warnings: What makes the figures doubtful.
        settings: How it was measured.
        output: The file that it was written to.
    """

    model: str = ""
    rows: tuple[ModelRow, ...] = ()
    generation: tuple[dict[str, Any], ...] = ()
    quality: tuple[dict[str, Any], ...] = ()
    runtimes: tuple[dict[str, Any], ...] = ()
    profile: tuple[ProfileRow, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    output: str | None = None

    @property
    def best(self) -> ModelRow | None:
        """The largest speed-up of the converted model, in whatever runtime of ours."""
        ours = [row for row in self.rows if row.ours and row.speedup_vs_torch is not None]
        return max(ours, key=lambda row: row.speedup_vs_torch or 0.0, default=None)
