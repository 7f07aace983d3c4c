"""The fit report itself: what it measures of one block, how it goes on after a stop, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fffconvert.fitreport import blocks
from fffconvert.fitreport.report import _Store
from test_conversion import BY_NAME
from typer.testing import CliRunner

from fffconvert.cli import app, fit_tables
from fffconvert.location import locate


def test_one_block_in_every_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "LARGE", 12)
    monkeypatch.setattr(blocks, "LEAF_DEPTH", 1)
    monkeypatch.setattr(blocks, "PATH_DEPTH", 3)
    case = BY_NAME["bert"]
    site = locate(case.build(), case.inputs())[0]
    x = torch.randn(3000, site.d_model, generator=torch.Generator().manual_seed(0))
    ways: list[str] = []
    rows = blocks.compare_block(site, x[:2500], x[2500:], blocks.Effort(2, 1), ways.append)
    assert [way.split(":")[0] for way in ways] == list(rows)
    assert set(rows) == set(fit_tables.WAYS)
    assert rows["leaves"]["active_width"] == 12
    assert rows["leaves"]["error"] < rows["leaves_random_routing"]["error"]
    assert all(row["error"] == pytest.approx(row["token_error"], abs=0.3) for row in rows.values())
    mean = {
        way: {k: row[k] for k in ("error", "token_error", "active_width", "storage", "seconds")}
        for way, row in rows.items()
    }
    tables = list(fit_tables.report({"blocks": {"blocks": {site.name: rows}, "mean": mean}}))
    assert [table.row_count for table in tables] == [len(fit_tables.WAYS), len(fit_tables.GOALS)]


def test_what_was_measured_is_not_measured_again(tmp_path: Path):
    calls: list[int] = []

    def measure() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    assert _Store(tmp_path, {"tokens": 1}).once("x", measure) == {"value": 1}
    assert _Store(tmp_path, {"tokens": 1}).once("x", measure) == {"value": 1}
    assert _Store(tmp_path, {"tokens": 2}).once("x", measure) == {"value": 2}
    with pytest.raises(ZeroDivisionError):
        _Store(tmp_path, {"tokens": 3}).once("x", lambda: 1 / 0)
    assert not _Store(tmp_path, {"tokens": 3}).has("x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "other"], "--only is 'other'; expected one of blocks"),
        (["--only", "mlm"], "does not exist"),
    ],
)
def test_refusals(arguments: list[str], message: str, tmp_path: Path):
    pytest.importorskip("scipy")
    command = ["fit-report", "--data", str(tmp_path), "--work", str(tmp_path / "work"), *arguments]
    if "mlm" in arguments:
        from importlib.metadata import PackageNotFoundError, distribution

        try:
            distribution("rxnfp")
        except PackageNotFoundError:
            pytest.skip("the model package rxnfp is not installed (make test installs it)")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, json.dumps(result.output)
    assert message in result.stderr
