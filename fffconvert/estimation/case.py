"""What is estimated: a model, the layers in the place of its blocks, and the work that it does."""

from __future__ import annotations

from dataclasses import dataclass

from fffconvert.estimation.anatomy import Anatomy, Block
from fffconvert.estimation.conversion import converted, limit
from fffconvert.estimation.machines import Hardware
from fffconvert.estimation.roofline import Time, duration
from fffconvert.estimation.workload import Workload
from fffconvert.planning import FFFSpec


@dataclass(frozen=True)
class Case:
    """A model with layers in the place of its blocks, at work.

    Attributes:
        anatomy: Its formulas.
        specs: The layer in the place of each block.
        work: Batch, context, phase.
        dtype: Of weights and activations.
        machine: Where it runs, if that was asked.
    """

    anatomy: Anatomy
    specs: tuple[FFFSpec, ...]
    work: Workload
    dtype: str
    machine: Hardware | None

    @property
    def converted(self) -> Anatomy:
        """The formulas of the converted model."""
        return converted(self.anatomy, self.specs)

    @property
    def block(self) -> Block:
        """The block that computes most; the figures for one layer are about it."""
        return max(self.anatomy.blocks, key=lambda block: block.macs * block.rows.count)

    @property
    def spec(self) -> FFFSpec:
        """The layer in the place of `block`."""
        return self.specs[self.anatomy.blocks.index(self.block)]

    @property
    def model_speedup_limit(self) -> float:
        """Amdahl's limit by counting: if the blocks cost nothing."""
        return limit(self.anatomy, self.work)

    @property
    def model_speedup(self) -> float:
        """The whole model's multiply-adds over those of the converted one."""
        return sum(self.anatomy.macs(self.work).values()) / sum(self.converted.macs(self.work).values())

    def durations(self, work: Workload | None = None) -> tuple[Time, Time] | None:
        """How long the original and the converted model take on the machine; None without one.

        Args:
            work: Other work than the case's.
        """
        if self.machine is None:
            return None
        own = work or self.work
        return (
            duration(self.anatomy, own, self.machine, self.dtype),
            duration(self.converted, own, self.machine, self.dtype),
        )

    def at_context(self, context: int) -> Workload:
        """The same work with another context."""
        return Workload(self.work.batch, context, self.work.phase, self.work.generates)
