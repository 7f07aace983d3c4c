"""A model as a list of formulas: what each operation costs at any batch and context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from fffconvert.estimation.workload import Stream, Workload
from fffconvert.planning import FFFSpec


class Part(str, Enum):
    """What an operation belongs to."""

    EMBEDDINGS = "embeddings"
    """Tables and maps before the first layer."""
    PROJECTIONS = "attention_projections"
    """Linear maps to queries, keys and values, and from the attention's result."""
    CONTEXT = "attention_context"
    """Products of queries with keys, and of attention weights with values."""
    FEEDFORWARD = "feedforward"
    """Feedforward blocks, and the experts of a mixture."""
    HEAD = "head"
    """Linear maps after the last layer."""
    OTHER = "other"
    """Norms, routers, state-space layers, convolutions, adapters."""


@dataclass(frozen=True)
class Rows:
    """How many rows an operation has: `count` for each position of a stream."""

    count: int
    stream: Stream

    def at(self, work: Workload) -> int:
        """The number of rows that one forward pass computes."""
        return self.count * work.computed(self.stream)


@dataclass(frozen=True)
class Operation:
    """One operation of a forward pass, as a formula.

    Attributes:
        name: Name of torch's function.
        part: What it belongs to.
        rows: Rows it computes; of the products of attention, the heads.
        query: Stream of the queries, for the products of attention.
        key: Stream of the keys, or of another axis that grows.
        macs: Multiply-adds per row, query and key.
        weights: Numbers of weights it reads, however many rows there are.
        elements: Numbers read and written per row, query and key, weights apart.
        query_elements: Numbers read and written per row and query.
        key_elements: Numbers read per sequence and key: the cache of keys and values.
        written: Numbers of the result per row and query, and where nothing is multiplied per key.
        calls: How many equal operations this stands for.
        block: Index of the feedforward block it belongs to.
        shape: Widths of a linear map's input and output; (0, 0) for anything else.
        trees: The trees that it is a pass through.
    """

    name: str
    part: Part
    rows: Rows
    query: Stream | None = None
    key: Stream | None = None
    macs: int = 0
    weights: int = 0
    elements: float = 0.0
    query_elements: float = 0.0
    key_elements: float = 0.0
    written: float = 0.0
    calls: int = 1
    block: int | None = None
    shape: tuple[int, int] = (0, 0)
    trees: FFFSpec | None = None

    def queries(self, work: Workload) -> int:
        """Rows of one call, times queries."""
        return self.rows.at(work) if self.query is None else self.rows.count * work.computed(self.query)

    def size(self, work: Workload) -> int:
        """Rows of one call, times queries and keys."""
        if self.key is None:
            return self.queries(work)
        keys = work.length(self.key)
        if self.query is None and self.rows.stream is Stream.FORWARD:
            keys = work.computed(self.key) // work.batch
        return self.queries(work) * keys

    def result(self, work: Workload) -> float:
        """Numbers in the result of one call."""
        return self.written * (self.queries(work) if self.macs else self.size(work))

    def moved(self, work: Workload) -> float:
        """Numbers that one call reads and writes, weights apart."""
        queries = self.queries(work)
        moved = self.elements * self.size(work) + self.query_elements * queries
        if self.key is not None and queries:
            moved += self.key_elements * work.batch * work.length(self.key)
        return moved


@dataclass(frozen=True)
class Block:
    """A feedforward block, or the experts of one layer.

    Attributes:
        name: Its path.
        d_model: Width of its input and output.
        d_hidden: Neurons; of a mixture those of one expert times the experts that a token meets.
        macs: Multiply-adds per row.
        rows: Rows it computes in all its calls.
        parameters: Of its projections.
        gated: Its hidden layer is a product of two projections.
        experts: It is a mixture of experts, which fffconvert leaves alone.
        activation: Its activation.
        feature_axis: Axis of the features in its input.
        calls: How often one forward pass calls it.
    """

    name: str
    d_model: int
    d_hidden: int
    macs: int
    rows: Rows
    parameters: int
    gated: bool
    experts: bool
    activation: str
    feature_axis: int = -1
    calls: int = 1


@dataclass(frozen=True)
class Anatomy:
    """A model as a list of formulas.

    Attributes:
        operations: In the order in which they run; equal ones once.
        blocks: The feedforward blocks.
        parameters: Numbers of parameters by part.
        main: Rows of the largest block: what counts as a token.
        generates: The stream that grows token by token when the model generates, if it does.
    """

    operations: tuple[Operation, ...]
    blocks: tuple[Block, ...]
    parameters: Mapping[Part, int]
    main: Rows
    generates: Stream | None

    def tokens(self, work: Workload) -> int:
        """Tokens, patches or frames that one forward pass computes, as the largest block sees them."""
        return max(1, self.main.at(work))

    def stream_numbers(self, work: Workload) -> int:
        """Numbers in one tensor of the residual stream."""
        return self.tokens(work) * max(block.d_model for block in self.blocks)

    def macs(self, work: Workload) -> dict[Part, int]:
        """Multiply-adds of one forward pass by part: matrix products and attention, nothing else."""
        totals = dict.fromkeys(Part, 0)
        for operation in self.operations:
            totals[operation.part] += operation.calls * operation.macs * operation.size(work)
        return totals
