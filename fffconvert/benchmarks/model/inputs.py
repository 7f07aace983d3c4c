"""Inputs of the benchmark, as files of arrays that every runtime can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
DRAWN = 4
"""Different inputs of each size: a runtime must not meet the same twice in a row."""


def write(folder: Path, size: tuple[int, int], inputs: Arrays, vocabulary: int | None) -> None:
    """Draw inputs like one example and write them.

    Args:
        folder: Where.
        size: (batch, length).
        inputs: An example of that size.
        vocabulary: Number of tokens that `input_ids` are drawn from; None where there are none.
    """
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for index in range(DRAWN):
        for name, example in inputs.items():
            drawn = example
            if name.endswith("input_ids") and vocabulary is not None:
                drawn = generator.integers(0, vocabulary, example.shape)
            elif np.issubdtype(example.dtype, np.floating):
                drawn = generator.standard_normal(example.shape, np.float32)
            arrays[f"{index}/{name}"] = drawn
    np.savez(_path(folder, size), **arrays)


def read(folder: Path, size: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    """The inputs of a size, each by the names of its arrays."""
    batches: list[dict[str, np.ndarray]] = [{} for _ in range(DRAWN)]
    with np.load(_path(folder, size)) as stored:
        for key in stored.files:
            index, _, name = key.partition("/")
            batches[int(index)][name] = stored[key]
    return batches


def _path(folder: Path, size: tuple[int, int]) -> Path:
    return folder / f"inputs-{size[0]}x{size[1]}.npz"
