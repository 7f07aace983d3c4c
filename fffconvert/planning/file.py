"""The plan file, which `fffconvert plan` writes and `fffconvert convert --plan` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fffconvert.errors import FFFError, first_line
from fffconvert.records import read

SHAPE = ("depth", "trees", "trunk", "leaf_width", "leaf_sparsity")
"""What a plan says of a block."""


@dataclass(frozen=True)
class PlannedBlock:
    """What a block is to become; what is None is as for all blocks.

    Attributes:
        depth: Depth of the trees.
        trees: Number of trees.
        trunk: Rank of the trunk.
        leaf_width: Neurons of the leaf blocks.
        leaf_sparsity: Share of them that a token skips.
        expected_error: 1 - R² per token that was measured for this shape.
        sensitivity: What the model loses by an error here.
    """

    depth: int
    trees: int | None = None
    trunk: int | None = None
    leaf_width: int | None = None
    leaf_sparsity: float | None = None
    expected_error: float | None = None
    sensitivity: float | None = None


@dataclass(frozen=True)
class Plan:
    """A plan file."""

    blocks: dict[str, PlannedBlock]
    model: str = ""

    def __post_init__(self) -> None:
        if not self.blocks:
            raise FFFError("it has no blocks; expected a file that fffconvert plan wrote")


def read_shapes(path: str | Path) -> dict[str, dict[str, float]]:
    """Read the shapes of a plan file: for each block some of `SHAPE`, depth at least.

    Raises:
        FFFError: There is no such file, or it is no plan.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FFFError(f"plan {path} cannot be read: {first_line(error)}") from error
    try:
        plan = read(Plan, document)
    except FFFError as error:
        raise FFFError(f"plan {path}: {error}") from None
    return {
        name: {key: value for key in SHAPE if (value := getattr(block, key)) is not None}
        for name, block in plan.blocks.items()
    }


def write_plan(path: Path, model: str, blocks: Mapping[str, dict[str, Any]]) -> None:
    """Write a plan file, atomically.

    Args:
        path: The file; replaced if it exists.
        model: Name of the model that it was made for.
        blocks: For each block some of `SHAPE`, depth at least, and the rest of a `PlannedBlock`.

    Raises:
        FFFError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(
            yaml.safe_dump({"model": model, "blocks": dict(blocks)}, sort_keys=False), encoding="utf-8"
        )
        partial.replace(path)
    except OSError as error:
        raise FFFError(f"cannot write {path}: {error.strerror}; choose another -o") from error
