"""Cells of tables, from fields of records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Column: TypeAlias = str | Callable[[Any], str]
"""What a column shows of a row: a field and its format, as in "macs_share:.1%", or what a function says."""


def cell(row: Any, column: Column, missing: str = "") -> str:
    """One cell.

    Args:
        row: A record, or a dictionary.
        column: What is shown of it.
        missing: Stands for None and NaN.
    """
    if callable(column):
        return column(row)
    name, _, form = column.partition(":")
    value = row[name] if isinstance(row, Mapping) else getattr(row, name)
    return missing if value is None or value != value else format(value, form)
