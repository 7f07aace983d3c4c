"""Cells show fields of records and of dictionaries alike."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from fffconvert.cells import cell
from fffconvert.cli.tables import table

VALUES = {"name": "a", "share": 0.1234, "count": 12345, "none": None, "nan": math.nan}


@pytest.mark.parametrize("row", [VALUES, SimpleNamespace(**VALUES)], ids=["dictionary", "record"])
def test_a_cell_is_a_field_in_its_format(row: object):
    shown = [cell(row, column, "–") for column in ("name", "share:.1%", "count:,", "none:,", "nan:.3f")]
    assert shown == ["a", "12.3%", "12,345", "–", "–"]
    assert cell(row, lambda given: str(given is row)) == "True"


def test_words_stand_on_the_left():
    found = table(
        "t", [VALUES], {"who": "name", "how many": "count:,", "what": lambda row: "x"}, left=("what",)
    )
    assert [column.justify for column in found.columns] == ["left", "right", "left"]
    assert [list(column.cells) for column in found.columns] == [["a"], ["12,345"], ["x"]]
