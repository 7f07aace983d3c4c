"""Calibration text: files, a `datasets` name, or the English that every Python installation carries."""

from __future__ import annotations

import ast
import gzip
import json
import os
import random
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from fffconvert.errors import FFFError
from fffconvert.fit.rows import Row, read_row
from fffconvert.options import TextSource

_SKIPPED_FOLDERS = {
    "__pycache__",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_LEAST_WORDS = 12
_SUFFIXES = (".txt", ".jsonl", ".gz")
_DATASET_ROWS = 20_000
_NOT_PROSE = re.compile(r">>>|::=|\|\s|={3}|-{3}|\*{3}|^\s*[-*@:]")
_WORD = re.compile(r"[A-Za-z]+[,.;:!?)]*")


def default_corpus(characters: int | None = None) -> list[str]:
    """Prose from the documentation topics and docstrings of the standard library, without duplicates.

    The sources are parsed, never imported. The order is shuffled by a fixed seed, so that the first part of
    the corpus is a fair sample of the whole.

    Args:
        characters: Stop once this many characters are gathered; None for all, some 180,000 words.

    Raises:
        FFFError: The installation carries no sources of its standard library.
    """
    paragraphs = _standard_library(Path(sysconfig.get_path("stdlib")))
    if not paragraphs:
        raise FFFError(
            "this Python installation has no readable sources of its standard library to calibrate on; "
            "name calibration files (.txt or .jsonl)"
        )
    return list(paragraphs if characters is None else _first(paragraphs, characters))


@cache  # to parse it takes seconds
def _standard_library(folder: Path) -> tuple[str, ...]:
    topics = folder / "pydoc_data" / "topics.py"
    texts = chain.from_iterable(_strings(path) for path in [topics, *_sources(folder)])
    paragraphs = list(dict.fromkeys(p for text in texts for p in _paragraphs(text) if _is_prose(p)))
    random.Random(0).shuffle(paragraphs)
    return tuple(paragraphs)


def read_texts(given: Any, columns: Sequence[str] = (), lines: bool = False) -> list[Any]:
    """What is given for text, as a list: files and datasets are read, all else is left as it is.

    Args:
        given: One thing or many: a `TextSource` or `Path` is read, a text, row or batch taken as it is.
        columns: Of rows of data, those that hold text; empty to find them by their usual names.
        lines: A text of a .txt file is a line; else a paragraph.

    Raises:
        FFFError: As `read_corpus`.
    """
    one = isinstance(given, str | Path | Mapping | Row) or hasattr(given, "shape")  # a tensor
    found: list[Any] = []
    for item in [given] if one else given:
        named = isinstance(item, TextSource | Path)
        found += read_corpus([item], columns, lines=lines) if named else [item]
    return found


def names_of_texts(given: Any) -> list[str]:
    """The names of files and datasets in what is given for text."""
    one = isinstance(given, str | Path | Mapping | Row) or hasattr(given, "shape")
    return [str(item) for item in ([given] if one else given or ()) if isinstance(item, TextSource | Path)]


def read_corpus(
    sources: Sequence[str | Path], columns: Sequence[str] = (), *, lines: bool = False
) -> list[str | Row]:
    """Read calibration texts in the order given.

    Args:
        sources: `.txt` files (a text per paragraph) and `.jsonl` files (a text, pair or chat per row), either
            also as `.gz`; anything else is taken for a dataset's name, NAME or NAME:CONFIG, of which the
            first 20,000 rows are read.
        columns: Of rows, the fields that hold text; empty to find them by their usual names.
        lines: A text of a .txt file is a line.

    Returns:
        Texts, and rows that hold other than one plain text.

    Raises:
        FFFError: A source cannot be found or read, is of another kind, or holds no text.
    """
    texts: list[str | Row] = []
    for source in sources:
        path = Path(source)
        is_file = path.exists() or path.is_absolute() or path.suffix in _SUFFIXES
        found = _read_file(path, columns, lines) if is_file else _read_dataset(str(source), columns)
        if not found:
            raise FFFError(f"calibration source {source} is empty; expected text")
        texts += found
    return texts


def _sources(folder: Path) -> Iterator[Path]:
    """The source files of the standard library."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))


def _strings(path: Path) -> Iterator[str]:
    """The docstrings of a source file, or the values of the dictionary that holds the topics."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # an unreadable file among a thousand costs nothing
        return
    if path.parent.name == "pydoc_data":
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
        return
    bodies: list[ast.AST] = [tree]
    while bodies:
        node = bodies.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""
        if isinstance(node, (ast.Module, ast.ClassDef)):
            bodies += node.body


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text, each on one line."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        if paragraph := " ".join(block.split()):
            yield paragraph


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    return (
        len(words) >= _LEAST_WORDS
        and paragraph[-1] in ".!?:"
        and not _NOT_PROSE.search(paragraph)
        and sum(_WORD.fullmatch(word) is not None for word in words) >= 0.75 * len(words)
    )


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """The first texts that hold this many characters together."""
    for text in texts:
        if characters <= 0:
            return
        yield text
        characters -= len(text)


def _read_file(path: Path, columns: Sequence[str], lines: bool) -> Sequence[str | Row]:
    if not path.exists():
        raise FFFError(f"calibration file {path} does not exist; name a .txt or .jsonl file")
    if not path.is_file():
        raise FFFError(f"calibration source {path} is a folder; name the .txt or .jsonl files in it")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in (".txt", ".jsonl"):
        raise FFFError(
            f"calibration file {path} is of another kind; expected .txt or .jsonl, or either as .gz"
        )
    text = read_utf8(path, "calibration file")
    if kind == ".txt":
        return _not_blank(text.splitlines()) if lines else list(_paragraphs(text))
    return read_lines(path, text, columns)


def read_utf8(path: Path, what: str) -> str:
    """The text of a file, also of a gzipped one.

    Args:
        path: The file.
        what: What to call it in errors.

    Raises:
        FFFError: It cannot be read, or holds no UTF-8 text.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FFFError(f"{what} {path} cannot be read as UTF-8 text: {error}") from error
    if "\0" in text:
        raise FFFError(f"{what} {path} is binary; expected UTF-8 text")
    return text


def json_lines(text: str, place: str) -> Iterator[tuple[int, Any]]:
    """What each line that holds anything says in JSON, with its number.

    Raises:
        FFFError: A line is no JSON.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise FFFError(
                f"{place}, line {number} is not JSON ({error}); expected one object per line"
            ) from error


def read_lines(path: Path, text: str, columns: Sequence[str] = ()) -> list[str | Row]:
    """The texts of a `.jsonl` file, one object a line; rows without any text are left out.

    Raises:
        FFFError: A line is no such object, or holds no text.
    """
    rows = json_lines(text, str(path))
    texts = [read_row(row, f"{path}, line {number}", columns) for number, row in rows]
    return _not_blank(texts)


def _not_blank(texts: Iterable[str | Row]) -> list[str | Row]:
    return [text for text in texts if any(part.strip() for part in rendered(text))]


def rendered(text: str | Row, tokenizer: Any = None) -> tuple[str, ...]:
    """A text or a row as plain texts; chats by the tokenizer's template."""
    return (text,) if isinstance(text, str) else text.rendered(tokenizer)


def _read_dataset(source: str, columns: Sequence[str]) -> list[str | Row]:
    # Only this kind of source needs the library, whose import takes a second.
    from datasets import load_dataset

    name, _, config = source.partition(":")
    try:
        splits = load_dataset(name, config or None, streaming=True)
        split = splits["train"] if "train" in splits else next(iter(splits.values()))
        rows = list(split.take(_DATASET_ROWS))
    except Exception as error:  # the library and what it calls raise dozens of kinds
        reason = " ".join(str(error).split())
        raise FFFError(
            f"calibration source {source} is no existing file, and no dataset of this name could be loaded "
            f"({reason}); name a .txt or .jsonl file, or check the name and the connection"
        ) from error
    return _not_blank(read_row(row, f"dataset {source}", columns) for row in rows)
