"""How long a forward pass takes on a machine.

On a machine of the list each operation takes the longer of computing and moving memory, at peak rates, plus
its call: a bound that real code does not beat. On a measured machine each takes what operations of its kind
and size were measured to take, and what the memory of a wide result costs at its first touch.

Reference: Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

from fffconvert.estimation.anatomy import Anatomy, Operation, Part
from fffconvert.estimation.conversion import distinct_nodes
from fffconvert.estimation.machines import BYTES, Hardware, Rates, at
from fffconvert.estimation.workload import Workload
from fffconvert.planning import FFFSpec

ALWAYS_FRESH = 1 << 25
"""Bytes from which on the C library returns memory at once.

Reference: mallopt(3) of glibc, M_MMAP_THRESHOLD.
"""


@dataclass(frozen=True)
class Time:
    """Duration of one forward pass.

    Attributes:
        seconds: In all.
        by_part: Of each part.
        computing: Seconds for which computing decides.
        moving: Seconds for which memory decides.
        calling: Seconds of calls.
    """

    seconds: float
    by_part: dict[Part, float]
    computing: float
    moving: float
    calling: float

    @property
    def bound(self) -> str:
        """What most of the time goes to."""
        shares = {"compute": self.computing, "memory": self.moving, "calls": self.calling}
        return max(shares, key=lambda name: shares[name])


def duration(anatomy: Anatomy, work: Workload, machine: Hardware, dtype: str = "float32") -> Time:
    """How long one forward pass (in training also the backward pass) takes.

    Args:
        anatomy: Of the model, original or converted.
        work: Batch, context and phase.
        machine: Where.
        dtype: Of weights and activations, a key of `BYTES`.
    """
    by_part = dict.fromkeys(Part, 0.0)
    computing = moving = calling = 0.0
    passes = work.phase.passes
    for operation in anatomy.operations:
        if not operation.size(work):
            continue
        if machine.rates is None:
            compute, memory = _peak(operation, work, machine, dtype)
        else:
            compute, memory = (
                _measured(operation, work, machine.rates),
                _fresh(operation, anatomy, work, machine.rates),
            )
        view = not (operation.macs or operation.elements)
        calls = 0.0 if view and machine.rates is None else operation.calls * machine.call_us * 1e-6
        busy = max(compute, memory) if machine.rates is None else compute + memory
        busy *= passes * operation.calls
        if compute >= memory:
            computing += busy
        else:
            moving += busy
        calling += calls
        by_part[operation.part] += busy + calls
    return Time(computing + moving + calling, by_part, computing, moving, calling)


def moved_bytes(anatomy: Anatomy, work: Workload, dtype: str) -> dict[Part, float]:
    """Bytes that one forward pass reads and writes, by part; of trees the rows that the tokens meet, once."""
    totals = dict.fromkeys(Part, 0.0)
    for operation in anatomy.operations:
        if operation.size(work):
            numbers = operation.moved(work) + _weights(operation, operation.queries(work))
            totals[operation.part] += operation.calls * numbers * BYTES[dtype]
    return totals


def weight_bytes(anatomy: Anatomy, dtype: str) -> float:
    """Memory of the weights."""
    return sum(anatomy.parameters.values()) * BYTES[dtype]


def cache_bytes(anatomy: Anatomy, work: Workload, dtype: str) -> float:
    """Memory of the keys and values that generating keeps; 0 for a model that does not generate."""
    if anatomy.generates is None:
        return 0.0
    numbers = sum(
        operation.calls * operation.key_elements * work.batch * work.length(operation.key)
        for operation in anatomy.operations
        if operation.key is not None and operation.query is anatomy.generates
    )
    return numbers * BYTES[dtype]


def _weights(operation: Operation, rows: int) -> float:
    """Numbers of weights that an operation reads."""
    spec = operation.trees
    return operation.weights if spec is None else _tree_weights(spec, rows)


def _tree_weights(spec: FFFSpec, rows: int) -> float:
    nodes = distinct_nodes(spec, rows) * (spec.d_in + spec.d_out)
    leaves = spec.trees * spec.leaves * (1 - (1 - 1 / spec.leaves) ** rows)
    return nodes + leaves * spec.leaf_width * (spec.d_in * (2 if spec.leaf_gated else 1) + spec.d_out)


def _peak(operation: Operation, work: Workload, machine: Hardware, dtype: str) -> tuple[float, float]:
    """Seconds of computing and of moving memory of one call, at peak rates."""
    macs = operation.macs * operation.size(work)
    stored = _weights(operation, operation.queries(work)) * BYTES[dtype]
    moved = operation.moved(work) * BYTES[dtype] + stored
    if operation.trees is None:
        return 2 * macs / machine.peak(dtype), moved / machine.memory_bandwidth(moved)
    # Each token reads its own rows, from the cache if those of all tokens fit in there.
    visits = macs * BYTES[dtype] / machine.memory_bandwidth(stored)
    return 2 * macs / machine.vector_flops, moved / machine.memory_bandwidth(moved) + visits


def _measured(operation: Operation, work: Workload, rates: Rates) -> float:
    """Seconds of one call at measured rates, in memory that was used before."""
    macs, rows, spec = operation.macs * operation.size(work), operation.rows.at(work), operation.trees
    if spec is not None:
        return macs / at(rates.tree, spec.d_in, spec.nodes, rows)
    if operation.weights:
        return macs / at(rates.matmul, operation.weights, rows)
    if operation.macs:
        return macs / at(rates.attention, work.length(operation.key) if operation.key is not None else 1)
    moved = operation.moved(work) * BYTES["float32"]
    return (
        moved / at(rates.elementwise.get(operation.name, rates.elementwise["add"]), moved) if moved else 0.0
    )


def _fresh(operation: Operation, anatomy: Anatomy, work: Workload, rates: Rates) -> float:
    """Seconds that the first touch of a result's memory costs: of results wider than the residual stream.

    Those end the heap, which shrinks when they are freed; the others find the memory of their predecessors.
    """
    result = operation.result(work) * BYTES["float32"]
    wide = result > 1.5 * anatomy.stream_numbers(work) * BYTES["float32"] or result > ALWAYS_FRESH
    return result * at(rates.fresh_share, result) / rates.fresh if wide else 0.0
