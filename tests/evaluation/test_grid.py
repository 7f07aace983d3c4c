"""A sweep: its points, going on after a stop, what is on its frontier, and its plot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fffconvert.cli import app
from fffconvert.evaluation import grid
from fffconvert.evaluation.compare import TaskScore
from fffconvert.evaluation.grid import SweepRow, pareto

pytest.importorskip("matplotlib")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


@pytest.fixture
def arguments(save: Callable[..., Path], data: Path, tmp_path: Path) -> list[object]:
    text = tmp_path / "calibration.txt"
    text.write_text("\n\n".join([(data / "text/wikitext2/wiki.test.raw.txt").read_text()] * 3))
    options = [
        "--task",
        "sts-b",
        "--data-dir",
        data,
    ]
    fit = ["--calibration", text, "--tokens", "500"]
    return [save("encoder"), "-o", tmp_path / "sweep", "--trees", "1,2", *options, *fit]


def test_a_sweep_and_going_on(
    arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any
):
    result = call(*arguments, "--depths", "2,0", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [(row["trees"], row["depth"]) for row in document["rows"]] == [(1, 0), (2, 0), (1, 2), (2, 2)]
    for row in document["rows"]:
        task = row["tasks"]["sts-b"]
        assert task["retained"] == pytest.approx(task["value"] / task["teacher"])
        assert 0 < row["active_fraction"] < 1
        assert row["parameters_ratio"] > 0
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"sweep.json", "sweep.png"}
    assert (tmp_path / "sweep/sweep.png").read_bytes().startswith(b"\x89PNG")

    converted: list[str] = []
    convert = grid.convert_model
    monkeypatch.setattr(
        grid, "convert_model", lambda model, own: converted.append(own.output.name) or convert(model, own)
    )
    again = call(*arguments, "--depths", "1,2,0", "--keep")
    assert again.exit_code == 0, again.output
    assert "1x2" in again.stdout
    assert [name[:3] for name in converted] == ["1x1", "2x1"]
    assert len(list((tmp_path / "sweep/points").iterdir())) == 2
    other = call(*arguments, "--depths", "1", "--limit", "9")
    assert other.exit_code == 2
    assert "holds a sweep that differs in limit; choose another --output" in other.stderr
    assert call(*arguments, "--depths", "1").exit_code == 0
    build("encoder", 1).save_pretrained(arguments[0])  # other weights by the same name
    assert "holds a sweep that differs in weights; choose" in call(*arguments, "--depths", "1").stderr
    build("encoder").save_pretrained(arguments[0])
    assert call(*arguments, "--depths", "1", "--limit", "9", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--depths", "two"], "Invalid value for '--depths': 'two'; expected whole numbers"),
        (["--depths", ","], "Invalid value for '--depths': ','; expected whole numbers"),
        (["--depths", "40"], "depth is 40; expected an integer from 0 to 20"),
        (["--depths", "1", "--task", "agreement"], "task agreement states no figure of the original"),
        (["--depths", "1", "--task", "other"], "unknown task 'other'"),
    ],
)
def test_refusals(arguments: list[object], more: list[str], message: str, tmp_path: Path):
    result = call(*arguments, *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "sweep").exists()


def test_the_frontier():
    def row(work: float, value: float | None, higher: bool = True) -> SweepRow:
        return SweepRow(1, 1, work, {"x": TaskScore("m", value, higher_is_better=higher)})

    assert pareto([row(0.1, 0.5), row(0.2, 0.4), row(0.3, 0.6), row(0.3, 0.6), row(0.2, None)]) == [0, 2, 3]
    assert pareto([row(0.1, 50, False), row(0.2, 40, False), row(0.3, 60, False)]) == [0, 1]
    assert pareto([]) == []
