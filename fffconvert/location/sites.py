"""`FFNSite`, the one description of a feedforward block that every later stage uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, overload

import torch
from torch import Tensor, fx

from fffconvert.errors import FFFError


class BlockKind(str, Enum):
    """How the up-projection is built."""

    PLAIN = "plain"
    GATED = "gated"
    FUSED_GATED = "fused gated"


class Position(str, Enum):
    """How a block sits among the modules of its model, which decides how it is replaced."""

    MODULE = "module"
    """One submodule is the block: the new layer takes its place."""
    SPLIT = "split"
    """Projections and activation are modules with nothing between: layer, identity, identity."""
    HANDOVER = "handover"
    """Something else lies between: the first projection's place computes, the last one's returns."""


@dataclass(frozen=True)
class Placement:
    """Where a block's modules are registered. A shared module is listed once per path.

    Attributes:
        position: How the block is replaced.
        entry: Paths of the module whose place the new layer takes.
        passed: Paths of modules that have nothing left to compute: further up-projections and, in the
            split position, activations.
        exit: Paths of the down-projection; empty where one submodule is the block.
        width: Width of the empty tensor that hand-over sends through what lies between: 0, or that of
            the hidden layer where it is needed (a norm, a split by size).
        feature_axis: Axis of the features in the block's input: -1, or 1 for convolutions.
    """

    position: Position
    entry: tuple[str, ...]
    passed: tuple[str, ...] = ()
    exit: tuple[str, ...] = ()
    width: int = 0
    feature_axis: int = -1

    def __post_init__(self) -> None:
        if not self.entry or (self.position is not Position.MODULE and not self.exit):
            raise FFFError("the placement names no module to replace; convert the model again")
        if self.feature_axis not in (-1, 1):
            raise FFFError(f"feature_axis is {self.feature_axis}; expected -1 or 1")


@dataclass(frozen=True)
class Projection:
    """One linear map of a block.

    Attributes:
        weight: [out, in], a view of the model's own parameter where the layout allows it.
        bias: [out] or None.
        parameters: Qualified names of the parameters it is made of.
    """

    weight: Tensor = field(repr=False, compare=False)
    bias: Tensor | None = field(repr=False, compare=False)
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class FFNSite:
    """One feedforward block of a model.

    Attributes:
        name: Path of the module whose place the new layer takes; unique in the model.
        layer: Index of the layer, the last number of the path, if there is one.
        kind: Plain, gated (two up-projections) or fused gated (one, split in two).
        d_model: Width of the block's input and output.
        d_hidden: Width of its hidden layer, in neurons.
        activation: Name of the activation ("custom" if it is none of the known ones).
        shared_calls: How often one forward pass calls the block; over 1 for shared weights.
        macs_share: The block's share of the multiply-adds of all linear maps and attention products.
        placement: Where it is among the modules and how it is replaced.
        up: The up-projections, in the order of the arguments of `hidden`.
        down: The down-projection.
        hidden: What lies between, as a graph: outputs of the up-projections [..., width] to the input of
            the down-projection [..., d_hidden]. Dropout is left out.
    """

    name: str
    layer: int | None
    kind: BlockKind
    d_model: int
    d_hidden: int
    activation: str
    shared_calls: int
    macs_share: float
    placement: Placement
    up: tuple[Projection, ...]
    down: Projection
    hidden: fx.GraphModule = field(repr=False, compare=False)

    @property
    def gated(self) -> bool:
        """Whether the hidden layer is a product of two projections."""
        return self.kind is not BlockKind.PLAIN

    @property
    def biases(self) -> bool:
        """Whether any of the projections has a bias."""
        return any(projection.bias is not None for projection in (*self.up, self.down))

    @property
    def parameters(self) -> int:
        """Parameters of the block's projections, in numbers."""
        tensors = [t for p in (*self.up, self.down) for t in (p.weight, p.bias) if t is not None]
        return sum(tensor.numel() for tensor in tensors)

    def dense(self) -> DenseBlock:
        """An exact re-implementation of the block, as a module of its own."""
        return DenseBlock(self)

    def to_dict(self) -> dict[str, Any]:
        """The site as `fffconvert inspect --json` prints it."""
        names = ("name", "layer", "kind", "d_model", "d_hidden", "activation", "gated", "biases")
        counted = ("shared_calls", "parameters", "macs_share")
        return {**{name: getattr(self, name) for name in (*names, *counted)}, "kind": self.kind.value}


@dataclass(frozen=True)
class Skipped:
    """Something like a feedforward block that was not taken.

    Attributes:
        name: Path of the module that holds it.
        reason: Why it was not taken.
    """

    name: str
    reason: str


class Sites(Sequence[FFNSite]):
    """The blocks of a model in the order in which they run. Prints as a table.

    Attributes:
        skipped: What looked like a feedforward block and was skipped.
    """

    def __init__(self, sites: Sequence[FFNSite], skipped: Sequence[Skipped] = ()) -> None:
        self._sites = tuple(sites)
        self.skipped = tuple(skipped)

    @overload
    def __getitem__(self, index: int) -> FFNSite: ...

    @overload
    def __getitem__(self, index: slice) -> Sites: ...

    def __getitem__(self, index: int | slice) -> FFNSite | Sites:
        """One block, or a part of them."""
        if isinstance(index, slice):
            return Sites(self._sites[index], self.skipped)
        return self._sites[index]

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        header = ("name", "kind", "d_model", "d_hidden", "activation", "calls", "parameters", "MACs")
        rows = [
            (
                site.name,
                site.kind.value,
                str(site.d_model),
                str(site.d_hidden),
                site.activation,
                str(site.shared_calls),
                f"{site.parameters:,}",
                f"{site.macs_share:.1%}",
            )
            for site in self._sites
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in (header, *rows)
        ]
        lines += [f"skipped: {skip.name or 'the model'}: {skip.reason}" for skip in self.skipped]
        return "\n".join(line.rstrip() for line in lines)


class DenseBlock(torch.nn.Module):
    """A located block, d_model to d_model, computed anew from the model's own weights.

    It serves as the check of a replacement and as the target of a fit. The weights share the model's memory:
    deepcopy it before you train it.
    """

    def __init__(self, site: FFNSite) -> None:
        super().__init__()
        self.feature_axis = site.placement.feature_axis
        self.dense_up = torch.nn.ModuleList([_linear(projection) for projection in site.up])
        self.dense_down = _linear(site.down)
        self.hidden = site.hidden

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x: [..., d_model], or [batch, d_model, ...] where the feature axis is 1.

        Returns:
            A tensor of the shape of `x`.
        """
        x = x.movedim(self.feature_axis, -1)
        y: Tensor = self.dense_down(self.hidden(*[up(x) for up in self.dense_up]))
        return y.movedim(-1, self.feature_axis)


def _linear(projection: Projection) -> torch.nn.Linear:
    d_out, d_in = projection.weight.shape
    linear = torch.nn.Linear(d_in, d_out, projection.bias is not None, device="meta")
    linear.weight = _parameter(projection.weight)
    if projection.bias is not None:
        linear.bias = _parameter(projection.bias)
    return linear


def _parameter(tensor: Tensor) -> torch.nn.Parameter:
    """A parameter in the memory of a tensor; of a model built in inference mode it can have no gradient."""
    return torch.nn.Parameter(tensor, requires_grad=not tensor.is_inference())
