"""The plan file, which `fffconvert plan` writes and `fffconvert convert --plan` takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fffconvert.errors import FFFError, first_line

SHAPE = ("depth", "trees", "trunk", "leaf_width", "leaf_sparsity")
"""What a plan says of a block."""


def read_shapes(path: str | Path) -> dict[str, dict[str, float]]:
    """Read the shapes of a plan file: for each block some of `SHAPE`, depth at least.

    Raises:
        FFFError: There is no such file, or it is no plan.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FFFError(f"plan {path} cannot be read: {first_line(error)}") from error
    blocks = document.get("blocks") if isinstance(document, dict) else None
    if not isinstance(blocks, dict) or not blocks:
        raise FFFError(f"plan {path} has no blocks; expected a file that fffconvert plan wrote")
    for name, values in blocks.items():
        if not isinstance(values, dict) or "depth" not in values:
            raise FFFError(
                f"plan {path}: block {name!r} has no depth; expected depth, and {', '.join(SHAPE[1:])}"
            )
    return {
        str(name): {key: values[key] for key in SHAPE if key in values} for name, values in blocks.items()
    }


def write_plan(path: Path, model: str, blocks: Mapping[str, dict[str, Any]]) -> None:
    """Write a plan file, atomically.

    Args:
        path: The file; replaced if it exists.
        model: Name of the model that it was made for.
        blocks: For each block some of `SHAPE`, depth at least, and whatever else a reader wants to know.

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
