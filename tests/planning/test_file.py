"""Plan files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fffconvert.errors import FFFError
from fffconvert.planning.file import read_shapes, write_plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("a: 1", "unknown key a; did you mean"),
        ("blocks: {x: 3}", "blocks.x is 3; expected keys and values"),
        ("blocks: {}", "it has no blocks"),
        ("blocks: {x: {dept: 3}}", "unknown key blocks.x.dept; did you mean blocks.x.depth"),
        ("blocks: {x: {leaf_width: 3}}", "blocks.x lacks depth"),
    ],
)
def test_files_that_are_no_plan_are_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(FFFError, match=message):
        read_shapes(path)
    with pytest.raises(FFFError, match="cannot be read"):
        read_shapes(tmp_path / "none.yaml")


def test_what_was_written_is_read_but_for_what_is_no_shape(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text("an older one")
    shapes = {"b": {"depth": 2, "trees": 3}, "a": {"depth": 0, "leaf_width": 8, "leaf_sparsity": 0.3}}
    write_plan(path, "m", {name: {**shape, "sensitivity": 0.1} for name, shape in shapes.items()})
    assert list(read_shapes(path).items()) == list(shapes.items())
    assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_plan_that_cannot_be_written_is_one_line(tmp_path: Path):
    with pytest.raises(FFFError, match=r"^cannot write .*plan\.yaml: .*; choose another -o$"):
        write_plan(tmp_path / "none" / "plan.yaml", "m", {"a": {"depth": 1}})
