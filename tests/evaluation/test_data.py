"""Task files: what is read of them, and what is refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from fffconvert.errors import FFFError
from fffconvert.evaluation.data import NotThere, Table, read_table, read_text

TABLE = Table(
    ("glue/x/dev", "glue/x/other"), ("some/x", "", "dev"), ("a",), labels=(0, 1), renamed={"a": "b"}
)
GOOD = '{"a": "text", "label": 1, "more": 3}\n'


def write(folder: Path, content: str | bytes, name: str = "glue/x/dev.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_rows_hold_the_asked_columns(tmp_path: Path):
    rows, place = read_table(TABLE, write(tmp_path, GOOD * 3 + "\n"))
    assert rows == ({"a": "text", "label": 1},) * 3
    assert place == "glue/x/dev.jsonl"
    assert len(read_table(TABLE, tmp_path, 2)[0]) == 2


@pytest.mark.parametrize("name", ["glue/x/other.jsonl", "x/dev.jsonl", "glue/x/dev.jsonl.gz"])
def test_files_are_found_in_the_usual_places(tmp_path: Path, name: str):
    content = GOOD.encode()
    rows, _ = read_table(
        TABLE, write(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)
    )
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"b": "text", "label": 1}', "has the columns b, label; expected a"),
        ('{"a": "text"}', "expected label"),
        ('{"a": 3, "label": 1}', "a is 3; expected text"),
        ('{"a": null, "label": 1}', "a is None; expected text"),
        ('{"a": "x", "label": 2}', "label is 2; expected 0 to 1"),
        ('{"a": "x", "label": "yes"}', "label is 'yes'"),
        ('{"a": "x", "label": true}', "label is True"),
        ('{"a": "x", "label": NaN}', "label is nan"),
        (GOOD + '{"a": ', "line 2 is not JSON"),
        ("[1, 2]", "line 1 is no object"),
        ("", "holds no rows"),
        (b"\xff\xfe\x00a", "cannot be read as UTF-8"),
        ("{}", "has the columns none"),
    ],
)
def test_malformed_files(tmp_path: Path, content: Any, message: str):
    with pytest.raises(FFFError, match="task file ") as caught:
        read_table(TABLE, write(tmp_path, content))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_cut_off_gzip_file(tmp_path: Path):
    whole = gzip.compress(GOOD.encode() * 100)
    with pytest.raises(FFFError, match="cannot be read"):
        read_table(TABLE, write(tmp_path, whole[:-20], "glue/x/dev.jsonl.gz"))


def test_missing_data_says_what_to_do(tmp_path: Path):
    with pytest.raises(FFFError, match="does not exist; give the folder"):
        read_table(TABLE, tmp_path / "none")
    with pytest.raises(NotThere, match=r"has no glue/x/dev\.jsonl; leave `data_dir` out"):
        read_table(TABLE, tmp_path)
    with pytest.raises(NotThere, match="not on the hub"):
        read_table(Table(("x",), None, ("a",)), None)


def test_some_rows_of_a_file(tmp_path: Path):
    write(tmp_path, '{"a": "x", "part": 1}\n{"a": "y", "part": 2}\n{"a": "z"}\n')
    rows, _ = read_table(Table(("glue/x/dev",), None, ("a",), where={"part": 2}), tmp_path)
    assert [row["a"] for row in rows] == ["y", "z"]  # the hub's files hold one part, and no such column


def test_rows_from_the_hub(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((*arguments, options))
        return [{"b": "text", "label": 0}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_table(TABLE, None) == (({"a": "text", "label": 0},), "some/x/dev")
    assert asked == [("some/x", None, {"split": "dev"})]


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(FFFError, match=r"some/x cannot be loaded from the hub \(no network\); give"):
        read_table(TABLE, None)


def test_texts(tmp_path: Path):
    one = tmp_path / "one.txt"
    one.write_text(" a\nb\n\nc\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "c\nd"}) + "\n")
    assert read_text([one, rows]) == ("a b\nc", "c\nd")
    assert read_text([one], lines=True) == (" a\nb\nc",)
    rows.write_text(json.dumps({"premise": "c", "hypothesis": "d", "body": "e"}) + "\n")
    assert read_text([rows]) == ("c", "d")
    assert read_text([rows], ["body"]) == ("e",)
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "c"}]}) + "\n")
    assert read_text([rows]) == ("c",)
    rows.write_text('{"words": "c"}\n')
    with pytest.raises(FFFError, match="expected text"):
        read_text([rows])
    one.write_text(" \n")
    with pytest.raises(FFFError, match="is empty"):
        read_text([one])
    with pytest.raises(FFFError, match="does not exist"):
        read_text([tmp_path / "two.txt"])
