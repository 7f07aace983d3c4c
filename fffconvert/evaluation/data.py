"""Rows of task data, from a local folder or from the hub, checked before anything is computed on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fffconvert.errors import FFFError
from fffconvert.fit.corpus import json_lines, read_corpus, read_utf8, rendered

Row = dict[str, Any]


class NotThere(FFFError):
    """The data of a task is neither in the folder nor on the hub."""


@dataclass(frozen=True)
class Table:
    """Where the rows of one split of a task are, and what they must hold.

    Attributes:
        files: Paths below the data folder, the preferred one first, without `.jsonl` and `.gz`.
        hub: Dataset, configuration ("" for none) and split on the hub; None if it is not there.
        texts: Columns that hold text.
        labels: Values that the column `label` may have; two floats are a range; None for no label.
        keys: Columns that are taken as they are.
        renamed: Names of columns on the hub, by ours.
        where: Columns and their values; rows with other ones are left out.
    """

    files: tuple[str, ...]
    hub: tuple[str, str, str] | None
    texts: tuple[str, ...]
    labels: tuple[int, ...] | tuple[float, float] | None = None
    keys: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)


def read_table(table: Table, data_dir: Path | None, limit: int | None = None) -> tuple[tuple[Row, ...], str]:
    """Read and check rows.

    Args:
        table: What to read.
        data_dir: The folder of local data; None to take it from the hub.
        limit: Take so many rows at most.

    Returns:
        The rows with the asked columns, and where they came from.

    Raises:
        FFFError: The data is not there, or a row lacks a column or has a value that it must not have.
    """
    if data_dir is None:
        rows, place = _from_hub(table)
    else:
        path = find_file(data_dir, table.files)
        rows, place = parse_lines(read_utf8(path, "task file"), path), path.relative_to(data_dir).as_posix()
    checked = tuple(
        islice(
            (
                _checked(table, row, f"{place}, row {number}")
                for number, row in enumerate(rows, 1)
                if all(row.get(key, value) == value for key, value in table.where.items())
            ),
            limit,
        )
    )
    if not checked:
        raise FFFError(f"task file {place} holds no rows; expected {', '.join(table.texts)} in each")
    return checked, place


def find_file(data_dir: Path, files: Sequence[str]) -> Path:
    """The first of the files that is in a folder, with any of the usual endings.

    A folder that is itself the first folder of the path (`glue` of `glue/rte/dev`) will do as well.

    Raises:
        NotThere: None is there.
    """
    if not data_dir.is_dir():
        raise FFFError(f"data folder {data_dir} does not exist; give the folder of the task data")
    for file in files:
        for name in (file, file.partition("/")[2]):
            for ending in (".jsonl.gz", ".jsonl", ".txt.gz", ".txt"):
                if name and (path := data_dir / f"{name}{ending}").is_file():
                    return path
    raise NotThere(
        f"data folder {data_dir} has no {files[0]}.jsonl; leave `data_dir` out to take the data from the "
        "hub, or leave the task out"
    )


def parse_lines(text: str, path: Path) -> list[Row]:
    """One JSON object from each line of a file that holds anything.

    Raises:
        FFFError: A line is none.
    """
    rows = []
    for number, row in json_lines(text, f"task file {path}"):
        if not isinstance(row, dict):
            raise FFFError(f"task file {path}, line {number} is no object; expected columns and values")
        rows.append(row)
    return rows


def _checked(table: Table, row: Row, place: str) -> Row:
    """The asked columns of a row."""
    found = {}
    for name in (*table.texts, *table.keys, *(() if table.labels is None else ("label",))):
        if name not in row:
            raise FFFError(
                f"task file {place} has the columns {', '.join(map(str, row)) or 'none'}; expected {name}"
            )
        found[name] = row[name]
    for name in table.texts:
        if not isinstance(found[name], str):
            raise FFFError(f"task file {place}: {name} is {found[name]!r}; expected text")
    if table.labels is not None and not _allowed(found["label"], table.labels):
        low, high = table.labels[0], table.labels[-1]
        raise FFFError(f"task file {place}: label is {found['label']!r}; expected {low} to {high}")
    return found


def _allowed(label: Any, labels: Sequence[Any]) -> bool:
    if isinstance(label, bool) or not isinstance(label, (int, float)):
        return False
    if isinstance(labels[0], float):
        return bool(labels[0] <= label <= labels[-1])
    return label in labels


def _from_hub(table: Table) -> tuple[list[Row], str]:
    if table.hub is None:
        raise NotThere(f"{table.files[0]} is not on the hub; give a folder that has it with `data_dir`")
    # Only this source needs the library, whose import takes a second.
    from datasets import load_dataset

    name, config, split = table.hub
    try:
        rows = [dict(row) for row in load_dataset(name, config or None, split=split)]
    except Exception as error:  # the library and what it calls raise dozens of kinds
        reason = " ".join(str(error).split())
        raise FFFError(
            f"dataset {name} cannot be loaded from the hub ({reason}); give a local folder with `data_dir`"
        ) from error
    for ours, theirs in table.renamed.items():
        for row in rows:
            if theirs in row:
                row[ours] = row.pop(theirs)
    return rows, f"{name}/{config}/{split}".replace("//", "/")


def read_text(
    paths: Sequence[str | Path], columns: Sequence[str] = (), tokenizer: Any = None, *, lines: bool = False
) -> tuple[str, ...]:
    """The documents of text files, with a text a line: a `.txt` file, or the texts of a `.jsonl` file's rows.

    Args:
        paths: The files.
        columns: Of rows, those that hold text; empty to find them by their usual names.
        tokenizer: Its template is for chats.
        lines: A text of a .txt file is a line; else a paragraph.

    Raises:
        FFFError: A file is missing, empty, not UTF-8, or a row holds no text.
    """
    documents: list[str] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise FFFError(f"text file {path} does not exist; name a .txt or .jsonl file")
        kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        found = read_corpus([path], columns, lines=lines)
        parts = [part for text in found for part in rendered(text, tokenizer)]
        documents += parts if kind == ".jsonl" else ["\n".join(parts)]
    return tuple(documents)
