"""Machines: peak rates of known ones, measured rates of this one, or a file of either."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from fffconvert.errors import FFFError
from fffconvert.records import load, read

BYTES = {"float64": 8.0, "float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of one number."""
Table = Sequence[tuple[float, Any]]
"""Rates by size: (size, rate) with rising sizes, or (size, table by a second size)."""


@dataclass(frozen=True)
class Rates:
    """What was measured on a machine, beyond what a peak says.

    Attributes:
        matmul: Multiply-adds per second of a linear map, by number of weights and rows.
        attention: The same of attention, by keys.
        tree: The same of the trees, by width, nodes of one tree, and rows.
        elementwise: Bytes per second by the name of the operation: by bytes.
        fresh: Bytes per second of memory that the process gets for the first time, beside what is done to it.
        fresh_share: Share of a result's memory that is: by bytes of the result.
    """

    matmul: Table
    attention: Table
    tree: Table
    elementwise: Mapping[str, Table]
    fresh: float
    fresh_share: Table


@dataclass(frozen=True)
class Hardware:
    """A machine.

    Attributes:
        name: What it is called on the command line.
        title: What it is.
        kind: "cpu" or "gpu".
        flops: Peak of dense matrix products by dtype, in floating point operations per second.
        vector_flops: Peak of everything else.
        bandwidth: Of the memory, in bytes per second.
        cache_bytes: Size of the last cache.
        cache_bandwidth: Of that cache, in bytes per second.
        memory_bytes: Size of the memory.
        call_us: Time of an operation that computes nothing, in microseconds.
        source: Where this is from.
        rates: What was measured, if it was.
    """

    name: str
    title: str
    kind: str
    flops: Mapping[str, float]
    vector_flops: float
    bandwidth: float
    cache_bytes: float
    cache_bandwidth: float
    memory_bytes: float
    call_us: float
    source: str
    rates: Rates | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        numbers = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type == "float"}
        numbers |= {f"flops.{dtype}": rate for dtype, rate in self.flops.items()}
        for name, number in numbers.items():
            if not 0 < number < math.inf:
                raise FFFError(f"{name} of machine {self.name} is {number!r}; expected a positive number")
        if "float32" not in self.flops:
            raise FFFError(f"flops of machine {self.name} lacks float32, the dtype that every machine has")

    def peak(self, dtype: str) -> float:
        """Floating point operations per second of matrix products; of the nearest wider dtype if unknown."""
        order = [dtype, "float16", "bfloat16", "float32"]
        if dtype in ("int8", "int4"):  # weights only: the products are of 16 bits
            order = order[1:]
        return next(self.flops[name] for name in order if name in self.flops)

    def memory_bandwidth(self, size: float) -> float:
        """Bytes per second of a working set of so many bytes."""
        return self.cache_bandwidth if size <= self.cache_bytes else self.bandwidth


@cache
def known_machines() -> dict[str, Hardware]:
    """The machines that are known by name."""
    text = files("fffconvert.estimation").joinpath("hardware.yaml").read_text(encoding="utf-8")
    return {
        name: read(Hardware, {"name": name, **values}, name) for name, values in yaml.safe_load(text).items()
    }


def hardware(name: str) -> Hardware:
    """A machine by its name, or from a JSON file; `this` is measured elsewhere.

    Raises:
        FFFError: There is no such machine or file.
    """
    if name.lower() in known_machines():
        return known_machines()[name.lower()]
    path = Path(name)
    if path.suffix != ".json":
        raise FFFError(
            f"unknown hardware {name!r}; expected this, a .json file, or {', '.join(known_machines())}"
        )
    try:
        return load(Hardware, path, "person")
    except (OSError, ValueError) as error:
        raise FFFError(
            f"cannot read hardware {name}: {error}; expected what --save-hardware writes"
        ) from None


def at(table: Table, size: float, *further: float) -> float:
    """The rate at a size; of a table of tables, at several sizes.

    It is straight between the measured points on logarithmic axes, and level outside them.
    """
    sizes = [point[0] for point in table]
    index = bisect_right(sizes, size)
    if index in (0, len(table)):
        return _value(table[min(index, len(table) - 1)][1], further)
    low, high = table[index - 1], table[index]
    share = math.log(size / low[0]) / math.log(high[0] / low[0])
    first, second = _value(low[1], further), _value(high[1], further)
    if min(first, second) <= 0:
        return (1 - share) * first + share * second
    return math.exp((1 - share) * math.log(first) + share * math.log(second))


def _value(entry: Any, sizes: tuple[float, ...]) -> float:
    return at(entry, *sizes) if sizes else float(entry)
