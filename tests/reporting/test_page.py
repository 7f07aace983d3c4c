"""What the page is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_documents as documents
from hypothesis import given
from hypothesis import strategies as st

from fffconvert.reporting.documents import read_conversion
from fffconvert.reporting.page import Figure, Table, number, percent, short_names
from fffconvert.reporting.sections.routing import cumulative
from fffconvert.reporting.writing import build

NAMES = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), unique=True, max_size=6
)


@given(NAMES)
def test_short_names_tell_blocks_apart(names: list[str]):
    short = short_names(names)
    assert len(short) == len(names) == len(set(short))
    assert all(own in name for own, name in zip(short, names, strict=True))


def test_short_names_leave_what_is_common_out():
    assert short_names(["encoder.layer.0.mlp", "encoder.layer.1.mlp"]) == ["0", "1"]
    assert short_names(["encoder.layer.0.mlp"]) == ["encoder.layer.0.mlp"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (float("nan"), "–"), (0.12345, "0.123"), (1234.5, "1,234.500"), (2e9, "2e+09")],
)
def test_numbers_for_people(value: float | None, shown: str):
    assert number(value) == shown


def test_percentages_for_people():
    assert (percent(None), percent(0.1234), percent(-1.5, 0)) == ("–", "12.3%", "-150%")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=400).filter(any))
def test_the_busiest_leaves_take_their_share(counts: list[int]):
    x, y = cumulative(counts)
    assert (x[0], y[0], x[-1]) == (0, 0, 1)
    assert y[-1] == pytest.approx(1)
    assert y == sorted(y)
    # Whatever the counts, the busiest share of the leaves takes at least that share of the tokens.
    assert all(taken >= share - 1e-9 for share, taken in zip(x, y, strict=True))


def test_many_blocks_are_folded_and_few_curves_drawn(tmp_path: Path):
    folder = documents.write(
        tmp_path / "out", metrics=documents.metrics(layers=60), recipe=documents.recipe()
    )
    (section,) = (found for found in build([read_conversion(folder)]).sections if found.name == "converted")
    (table,) = (part for part in section.parts if isinstance(part, Table))
    assert table.folded
    assert len(table.rows) == 60
    assert len([part for part in section.parts if isinstance(part, Figure)]) == 3


def test_a_sweep_is_no_model_among_others(tmp_path: Path):
    folders = [
        documents.write(tmp_path / "out", metrics=documents.metrics(), recipe=documents.recipe()),
        documents.write(tmp_path / "sweep", sweep=documents.sweep()),
    ]
    page = build([read_conversion(folder) for folder in folders])
    assert page.overview is not None
    assert [row[0] for row in page.overview.rows] == ["out"]
    assert page.title == "Fast feedforward report: somebody/encoder"
