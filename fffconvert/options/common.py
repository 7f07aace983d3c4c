"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fffconvert.errors import FFFError
from fffconvert.options.fields import option

if TYPE_CHECKING:
    from fffconvert.location import Sites
    from fffconvert.location.inputs import Inputs


Choice = TypeVar("Choice", bound=Enum)


class TextSource(str):
    """Text by name: a .txt or .jsonl file (also as .gz), or a dataset of the hub, NAME or NAME:CONFIG."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a model is read by name.

    Attributes:
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run the code that a repository brings along.
    """

    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How text is read.

    Attributes:
        text_columns: Columns of rows of data that hold text; the usual names are found without.
        lines: A text of a .txt file is a line; else a paragraph, between blank lines.
    """

    text_columns: tuple[str, ...] = option((), flag="--text-column")
    lines: bool = False


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How an output is written, always atomically.

    Attributes:
        overwrite: Replace an output of fffconvert once the new one is complete.
    """

    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Calibrated(Reading, Texts):
    """Which blocks are looked at, and on what text.

    Attributes:
        include: Patterns of blocks, as in 'encoder.layer.0'; all by default.
        exclude: Patterns of blocks to leave.
        min_expansion: Least d_hidden / d_model; narrower blocks are taken for adapters.
        calibration: Text to fit on: .txt or .jsonl files, or a name of datasets; English that comes with
            Python by default. From Python also texts, rows of data, or what forward passes take (tensors).
            An eighth is held out: whole texts, or the first batches.
        tokens: Calibration tokens, those held out included.
        length: Longest calibration sequence, in tokens; as long as those the model is used on.
        seed: Order of the calibration text.
        tokenizer: The tokenizer of a model in memory.
        example_inputs: What one forward pass takes, where it cannot be guessed: tensor, tuple or mapping.
        sites: The blocks of this model, as `locate` found them.
    """

    include: tuple[str, ...] = option((), flag="--include")
    exclude: tuple[str, ...] = option((), flag="--exclude")
    min_expansion: float = 1.0
    calibration: Iterable[Any] | None = None
    tokens: int = 100_000
    length: int = 128
    seed: int = 0
    tokenizer: Any = option(None, python=True)
    example_inputs: Inputs | None = option(None, python=True)
    sites: Sites | None = option(None, python=True)

    def __post_init__(self) -> None:
        for name, low in (("tokens", 256), ("length", 8)):
            if getattr(self, name) < low:
                raise FFFError(f"`{name}` is {getattr(self, name)}; expected at least {low}")


def choice(kind: type[Choice], name: str, value: Choice | str) -> Choice:
    """One of the choices of an enumeration, by its value.

    Raises:
        FFFError: There is no such choice.
    """
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(str(member.value) for member in kind)
        raise FFFError(f"`{name}` is {value!r}; expected one of {expected}") from None


def expand(path: str | Path | None) -> Path | None:
    """A path with the home folder in the place of ~."""
    return None if path is None else Path(path).expanduser()
