"""Plan files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fffconvert.errors import FFFError
from fffconvert.plan.file import read_shapes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("a: 1", "has no blocks"),
        ("blocks: {x: 3}", "block 'x' has no depth"),
        ("blocks: {x: {leaf_width: 3}}", "block 'x' has no depth"),
    ],
)
def test_files_that_are_no_plan_are_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(FFFError, match=message):
        read_shapes(path)
    with pytest.raises(FFFError, match="cannot be read"):
        read_shapes(tmp_path / "none.yaml")
