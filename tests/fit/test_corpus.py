from __future__ import annotations

import gzip
import inspect
import json
import textwrap
from pathlib import Path

import pytest

from fffconvert.errors import FFFError
from fffconvert.fit import corpus as module
from fffconvert.fit import default_corpus, read_corpus


@pytest.fixture(scope="module")
def whole() -> list[str]:
    return default_corpus()


def test_python_carries_enough_prose(whole: list[str]):
    words = [word for text in whole for word in text.split()]
    assert len(words) > 100_000
    assert len(set(whole)) == len(whole)
    assert sum(word.lower() == "the" for word in words) > 0.04 * len(words)  # English has 5 to 7 %
    assert not any("\n" in text or ">>>" in text for text in whole)


def test_topics_and_docstrings_are_both_in_it(whole: list[str]):
    topic = "Assert statements are a convenient way to insert debugging assertions into a program:"
    docstring = " ".join(inspect.cleandoc(textwrap.wrap.__doc__ or "").split("\n\n")[1].split())
    assert {topic, docstring} <= set(whole)


def test_a_part_is_the_beginning_of_the_whole(whole: list[str]):
    part = default_corpus(10_000)
    assert part == whole[: len(part)]
    assert sum(map(len, part[:-1])) < 10_000 <= sum(map(len, part))


def test_an_installation_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FFFError, match=r"no readable sources .* name calibration files"):
        default_corpus()


def test_only_prose_of_the_library_itself_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prose = "This is a sentence about {} that goes on for long enough to be taken for prose."
    example = ">>> this = 'is a doctest that has quite a few words but is code and not prose'."
    for name, text in {
        "good.py": f'class A:\n    """{prose.format("good")}\n\n    {example}\n\n    Too short.\n    """\n',
        "test/bad.py": f'"""{prose.format("tests")}"""',
        "site-packages/bad.py": f'"""{prose.format("packages")}"""',
        "broken.py": f'"""{prose.format("errors")}"""\ndef (',
        "raises.py": f'"""{prose.format("imports")}"""\nraise SystemExit("imported")',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert sorted(default_corpus()) == [prose.format("good"), prose.format("imports")]


def write(path: Path, text: str | bytes) -> Path:
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
def test_files_are_read_in_the_order_given(tmp_path: Path, suffix: str):
    rows = [{"text": "one row"}, {"text": "naïve ☃\nrow", "id": 3}]
    jsonl = write(tmp_path / f"b.jsonl{suffix}", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    txt = write(tmp_path / f"a.txt{suffix}", "A paragraph\nover lines.\r\n\r\n\r\nAnother.\n")
    expected = ["one row", "naïve ☃\nrow", "A paragraph over lines.", "Another."]
    assert read_corpus([jsonl, str(txt)]) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n \n", "is empty"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.jsonl", '{"text": "  "}', "is empty"),
        ("a.txt", b"\xff\xfe\x00\x01", "cannot be read as UTF-8"),
        ("a.txt", b"MZ\x00\x00text", "is binary"),
        ("a.jsonl", '{"text": "fine"}\n{"body": "x", "id": 1}', r"line 2 holds the fields body, id; .* text"),
        ("a.jsonl", '{"text": 3}', "line 1 holds the fields text; expected .* a string"),
        ("a.jsonl", '["text"]', "line 1 holds a list"),
        ("a.jsonl", '{"text": "fine"}\n{"text": ', "line 2 is not JSON"),
        ("a.csv", "text\nfine", "of another kind; expected .txt or .jsonl"),
        ("a.gz", "fine", "of another kind"),
    ],
    ids=[
        "empty", "blank", "blank rows", "blank fields", "undecodable", "binary", "no text field",
        "text not a string", "not an object", "not JSON", "another kind", "gz of what",
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
):
    path = write(tmp_path / name, content)
    with pytest.raises(FFFError, match=message) as error:
        read_corpus([path])
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_refused(tmp_path: Path):
    with pytest.raises(FFFError, match="is a folder"):
        read_corpus([tmp_path])
    with pytest.raises(FFFError, match="does not exist"):
        read_corpus([tmp_path / "missing.txt"])


@pytest.mark.parametrize("cut", [20, -4], ids=["body", "checksum"])
def test_a_truncated_archive_is_refused(tmp_path: Path, cut: int):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(bytes(range(32, 127)) * 50)[:cut])
    with pytest.raises(FFFError, match="cannot be read"):
        read_corpus([path])


class TestDatasets:
    def test_a_name_with_its_configuration_is_loaded(self, monkeypatch: pytest.MonkeyPatch):
        import datasets

        asked = []

        def load(name: str, config: str | None, **options: object) -> dict[str, datasets.IterableDataset]:
            asked.append((name, config, options))
            rows = datasets.Dataset.from_dict({"text": ["one", "", "two"]}).to_iterable_dataset()
            return {"test": rows.take(1), "train": rows}

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert read_corpus(["some/text:small"]) == ["one", "two"]
        assert asked == [("some/text", "small", {"streaming": True})]

    def test_one_that_cannot_be_loaded_is_refused_in_one_line(self):
        # conftest.py keeps the hub library offline.
        with pytest.raises(FFFError, match=r"no/such is no existing file, and no dataset .* name a") as error:
            read_corpus(["no/such"])
        assert "\n" not in str(error.value)
