"""What each block of a model becomes, found by a search or written by hand; the file that holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fffconvert.errors import FFFError, first_line
from fffconvert.planning.spec import FFFSpec
from fffconvert.records import read

SHAPE = ("depth", "trees", "trunk", "leaf_width", "leaf_sparsity")
"""What says how large a layer is."""


@dataclass(frozen=True)
class Choice:
    """One layer that a block can become.

    Attributes:
        shape: Fields of `FFFSpec` that make it: some of `SHAPE`.
        macs: Multiply-adds per token.
        error: 1 - R² per token on held-out text.
        parameters: What it stores.
    """

    shape: dict[str, float]
    macs: int
    error: float
    parameters: int


@dataclass(frozen=True)
class Curve:
    """What a block can become.

    Attributes:
        name: Name of the block.
        macs: Multiply-adds per token of the dense block.
        macs_share: Its share of the model's.
        sensitivity: Relative squared change of the model's output where the block gives its mean output.
        choices: In the order of their multiply-adds; each has a lower error than those before it.
    """

    name: str
    macs: int
    macs_share: float
    sensitivity: float
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class PlannedBlock:
    """What one block becomes.

    Attributes:
        depth: Depth of the trees.
        trees: How many.
        trunk: Rank of the linear map beside them.
        leaf_width: Neurons of each leaf block.
        leaf_sparsity: Share of them that a token skips.
        expected_error: 1 - R² per token to expect; None where it was not measured.
        sensitivity: How much the model depends on the block, see `Curve`; None where it was not measured.
    """

    depth: int
    trees: int = 1
    trunk: int = 0
    leaf_width: int = 0
    leaf_sparsity: float = 0.0
    expected_error: float | None = None
    sensitivity: float | None = None

    @classmethod
    def of(cls, spec: FFFSpec) -> PlannedBlock:
        """What makes a layer of this specification."""
        return cls(**{name: getattr(spec, name) for name in SHAPE})

    @property
    def shape(self) -> dict[str, float]:
        """The fields of `FFFSpec`."""
        return {name: getattr(self, name) for name in SHAPE}


@dataclass(frozen=True)
class Plan:
    """What each block of a model becomes; other blocks are left.

    Attributes:
        blocks: By name.
        model: Name of the model that it was made for.
        curves: What was measured to find it; not part of the file.
    """

    blocks: dict[str, PlannedBlock]
    model: str = ""
    curves: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            raise FFFError("it has no blocks; expected a file that fffconvert plan wrote")

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, Mapping[str, Any]]) -> Plan:
        """A plan of these shapes, each some of `SHAPE`."""
        return cls({name: PlannedBlock(**{**shape}) for name, shape in shapes.items()})

    @property
    def shapes(self) -> dict[str, dict[str, float]]:
        """The shape of each block."""
        return {name: block.shape for name, block in self.blocks.items()}

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan file: for each block a depth and what else of `SHAPE` differs from the usual.

        Raises:
            FFFError: There is no such file, or it is no plan.
        """
        try:
            document = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise FFFError(f"plan {path} cannot be read: {first_line(error)}") from error
        try:
            return read(cls, document)
        except FFFError as error:
            raise FFFError(f"plan {path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the plan, atomically; a file of this name is replaced.

        Raises:
            FFFError: The file cannot be written.
        """
        target = Path(path).expanduser()
        partial = target.with_name(f".{target.name}.partial")
        blocks = {
            name: {key: value for key, value in dataclasses.asdict(block).items() if value is not None}
            for name, block in self.blocks.items()
        }
        try:
            text = yaml.safe_dump({"model": self.model, "blocks": blocks}, sort_keys=False)
            partial.write_text(text, encoding="utf-8")
            partial.replace(target)
        except OSError as error:
            raise FFFError(f"cannot write {path}: {error.strerror}; choose another `output`") from error
