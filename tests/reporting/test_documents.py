"""Whatever a folder holds is read as written, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_documents as documents

from fffconvert.errors import FFFError
from fffconvert.reporting.documents import read_conversion


def test_reads_what_is_there(tmp_path: Path):
    found = read_conversion(documents.everything(tmp_path / "out"))
    assert found.base == "somebody/encoder"
    assert found.metrics is not None
    assert len(found.metrics.blocks) == 6
    assert found.evaluation is not None
    assert found.evaluation.tasks["sts-b"].ci95 == (0.77, 0.81)
    assert found.evaluation.routing is not None
    assert found.evaluation.routing.leaves[1].tokens == (("dog", 12), ("cat", 9))
    assert [step.step for step in found.training][:2] == [10, 20]
    assert found.sweep is not None
    assert found.sweep.pareto == (0, 1, 3, 4)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("eval.json", "{", "Expecting property name"),
        ("eval.json", "[]", "eval.json is []; expected keys and values"),
        ("eval.json", '{"tasks": {"sts-b": {"metric": "spearman"}}}', "eval.json.tasks.sts-b lacks value"),
        ("eval.json", '{"tasks": {"a": {"metric": "m", "value": "x"}}}', "value is 'x'; expected a number"),
        ("eval.json", '{"tasks": {"a": {"metric": "m", "value": 1, "ci95": [1]}}}', "expected a list of 2"),
        ("metrics.json", '{"blocks": 3}', "metrics.json.blocks is 3; expected a list"),
        ("training.jsonl", '{"step": 1}\n{"loss": 2}\n', "training.jsonl line 2 lacks step"),
        ("fffconvert.yaml", "a: [", "while parsing"),
        ("fffconvert.yaml", "- a", "expected names and values"),
        ("bench.json", '{"rows": [{"runtime": "torch", "batch": 1.5}]}', "expected a whole number"),
        ("sweep.json", '{"rows": [null]}', "rows.0 is None; expected keys and values"),
    ],
)
def test_refuses_what_cannot_be_read(tmp_path: Path, name: str, text: str, reason: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(FFFError) as refused:
        read_conversion(tmp_path)
    message = str(refused.value)
    assert reason in message
    assert str(tmp_path / name) in message
    assert "make it again with fffconvert" in message
    assert "\n" not in message


def test_refuses_what_is_not_text(tmp_path: Path):
    (tmp_path / "eval.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(FFFError, match=r"cannot read .*eval.json"):
        read_conversion(tmp_path)


def test_leaves_out_a_line_that_a_killed_run_has_left_unfinished(tmp_path: Path):
    (tmp_path / "training.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [step.step for step in read_conversion(tmp_path).training] == [1]


def test_a_distilled_model_is_that_of_its_conversion(tmp_path: Path):
    recipe = {"stages": [], "conversion": {"model": "somebody/encoder", "calibration": ["a.txt"]}}
    found = read_conversion(documents.write(tmp_path / "out", recipe=recipe))
    assert found.base == "somebody/encoder"
    assert found.conversion["calibration"] == ["a.txt"]
