"""What each block becomes, and the formulas of the model that results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fffconvert.errors import FFFError
from fffconvert.estimation.anatomy import Anatomy, Block, Operation, Part, Rows
from fffconvert.estimation.workload import Stream, Workload
from fffconvert.planning import FFFSpec, LayerForm
from fffconvert.planning.selection import known_activation


@dataclass(frozen=True)
class Budget:
    """What takes a block's place.

    Attributes:
        depth: Depth of the trees; by default the least with as many nodes as the block has neurons.
        trees: Trees side by side.
        trunk: Rank of the always-active linear map.
        active_fraction: Instead of `trees`: share of the block's multiply-adds that may be left.
        layer: Form of the layer, which decides what is stored.
    """

    depth: int | None = None
    trees: int | None = None
    trunk: int = 0
    active_fraction: float | None = None
    layer: LayerForm = LayerForm.BRANCH

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", LayerForm(self.layer))
        if self.active_fraction is not None:
            if self.trees is not None:
                raise FFFError("trees and active_fraction were both given; expected one of them")
            if not 0 < self.active_fraction <= 1:
                raise FFFError(f"active_fraction is {self.active_fraction:g}; expected over 0 and at most 1")
        FFFSpec(1, 1, self.depth or 0, 1 if self.trees is None else self.trees, self.trunk)

    def spec(self, block: Block) -> FFFSpec:
        """The layer in the place of a block.

        Raises:
            FFFError: The active fraction is less than one path of one tree, or the activation is unknown.
        """
        depth = max(0, block.d_hidden.bit_length() - 1) if self.depth is None else self.depth
        # Experts are left alone: what a tree would take in their place depends on no activation.
        activation = "gelu" if block.experts else known_activation(block.activation, block.name)
        spec = FFFSpec(
            d_in=block.d_model,
            d_out=block.d_model,
            depth=depth,
            trees=self.trees or 1,
            trunk=self.trunk,
            branch_outputs=self.layer is LayerForm.BRANCH,
            activation=activation,
            feature_axis=block.feature_axis,
        )
        if self.active_fraction is None:
            return spec
        trunk = 2 * block.d_model * self.trunk
        trees = int((self.active_fraction * block.macs - trunk) // (spec.macs_per_token - trunk))
        if trees < 1:
            raise FFFError(
                f"active_fraction {self.active_fraction:g} of block {block.name} is less than one "
                "tree of depth "
                f"{depth} with trunk {self.trunk} needs; expected at least "
                f"{spec.macs_per_token / block.macs:.2g}"
            )
        return replace(spec, trees=trees)


def converted(anatomy: Anatomy, specs: Sequence[FFFSpec]) -> Anatomy:
    """The formulas of a model in whose blocks' places stand FFF layers.

    Args:
        anatomy: Of the original.
        specs: The layer in the place of each block.
    """
    kept = [operation for operation in anatomy.operations if operation.block is None]
    added = [
        operation
        for block, spec in zip(anatomy.blocks, specs, strict=True)
        for operation in _layer(block, spec)
    ]
    parameters = dict(anatomy.parameters)
    for block, spec in zip(anatomy.blocks, specs, strict=True):
        parameters[Part.FEEDFORWARD] += spec.parameters - block.parameters
    return replace(anatomy, operations=_merged([*kept, *added]), parameters=parameters)


def ablated(anatomy: Anatomy) -> Anatomy:
    """The formulas of the model without its blocks: the limit of what can be gained."""
    kept = tuple(operation for operation in anatomy.operations if operation.block is None)
    return replace(anatomy, operations=kept)


def distinct_nodes(spec: FFFSpec, tokens: int) -> float:
    """Nodes of all trees that so many tokens meet, if each branch is taken by half of those that reach it."""
    levels = (2.0**level for level in range(spec.depth + 1))
    return spec.trees * sum(nodes * (1 - (1 - 1 / nodes) ** tokens) for nodes in levels)


def break_even_tokens(block: Block, spec: FFFSpec) -> int | None:
    """Tokens per pass from which on the visited rows are as many bytes as the dense block; None if never."""
    most = 1 << 40

    def reached(tokens: int) -> bool:
        rows = distinct_nodes(spec, tokens) + spec.trunk
        return rows * (spec.d_in + spec.d_out) >= block.macs

    if not reached(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return low


def _layer(block: Block, spec: FFFSpec) -> list[Operation]:
    """The operations of an `FFFLayer`."""
    rows = block.rows
    if rows.count % block.calls == 0 and rows.stream is not Stream.FORWARD:
        rows = Rows(rows.count // block.calls, rows.stream)
    width = spec.d_in + spec.d_out
    trunk = spec.trunk * width
    tree = Operation(
        "cmm_inference",
        Part.FEEDFORWARD,
        rows,
        macs=spec.macs_per_token - trunk,
        elements=float(width),
        written=spec.d_out,
        trees=spec,
    )
    added = [tree]
    if spec.trunk:
        for shape in ((spec.d_in, spec.trunk), (spec.trunk, spec.d_out)):
            size = shape[0] * shape[1]
            added.append(
                Operation(
                    "matmul",
                    Part.FEEDFORWARD,
                    rows,
                    macs=size,
                    weights=size,
                    elements=sum(shape),
                    written=shape[1],
                    shape=shape,
                )
            )
        added.append(Operation("add_", Part.FEEDFORWARD, rows, elements=3.0 * spec.d_out))
    return added * block.calls


def _merged(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """Equal operations once, with the number of calls."""
    counts: dict[Operation, int] = {}
    for operation in operations:
        one = replace(operation, calls=1)
        counts[one] = counts.get(one, 0) + operation.calls
    return tuple(replace(operation, calls=count) for operation, count in counts.items())


def limit(anatomy: Anatomy, work: Workload) -> float:
    """Amdahl's limit: the model's multiply-adds over what is left without its blocks."""
    whole, rest = sum(anatomy.macs(work).values()), sum(ablated(anatomy).macs(work).values())
    return whole / rest if rest else float("inf")
