"""Plan files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fffconvert.errors import FFFError
from fffconvert.planning.file import Plan, PlannedBlock


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
        Plan.read(path)
    with pytest.raises(FFFError, match="cannot be read"):
        Plan.read(tmp_path / "none.yaml")


def test_what_was_written_is_read(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text("an older one")
    blocks = {
        "b": PlannedBlock(2, trees=3, sensitivity=0.1),
        "a": PlannedBlock(0, leaf_width=8, leaf_sparsity=0.3, expected_error=0.2),
    }
    Plan(blocks, "m").save(path)
    found = Plan.read(path)
    assert list(found.blocks.items()) == list(blocks.items())
    assert (found.model, found.curves) == ("m", ())
    assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]


def test_what_is_no_part_of_a_plan_is_refused_with_the_nearest_key(tmp_path: Path):
    (tmp_path / "plan.yaml").write_text("blocks: {x: {depth: 3, tree: 2}}")
    with pytest.raises(FFFError, match=r"unknown key blocks\.x\.tree; did you mean blocks\.x\.trees"):
        Plan.read(tmp_path / "plan.yaml")


def test_a_plan_that_cannot_be_written_is_one_line(tmp_path: Path):
    with pytest.raises(FFFError, match=r"^cannot write .*plan\.yaml: .*; choose another `output`$"):
        Plan({"a": PlannedBlock(1)}, "m").save(tmp_path / "none" / "plan.yaml")
