"""Options of `distill`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fffconvert.errors import FFFError
from fffconvert.options.common import Texts, Writing, choice
from fffconvert.options.fields import option

if TYPE_CHECKING:
    from fffconvert.distillation.recipe import Recipe


class Control(str, Enum):
    """What a conversion is held against: what stands in the place of each block."""

    ABLATED = "ablated"
    """Its mean output: one trained bias."""
    DENSE = "dense"
    """A dense block of the conversion's active width, begun from the original's best neurons."""
    RANDOM_ROUTING = "random-routing"
    """The converted layer with hyperplanes drawn at random, through the middle of what comes there."""
    ORIGINAL = "original"
    """The block itself."""


@dataclass(frozen=True)
class DistillOptions(Texts, Writing):
    """How a converted model is retrained.

    Attributes:
        teacher: The original; by default the one that the folder was converted from.
        data: Text to train on, for the recipe's: .txt or .jsonl files, or names of datasets. From Python also
            texts and rows of data.
        recipe: The run: a YAML file, see recipes/ in the sources; by default one pass over the text.
        output: Folder to write.
        text: Text to evaluate on; by default rows held out of the training text.
        revision: Branch, tag or commit of the teacher; by default the converted one.
        control: Train what a conversion is held against in its place, by the same recipe.
        train_tokens: Training tokens of every stage.
        steps: Optimiser steps of every stage.
        seed: Of the order of the data, of masks, of new weights; by default the recipe's.
        cache: Run the teacher once over the text and store its outputs (see fffconvert cache).
        settings: Any key of the recipe, as in stages.batch_size=16.
        restart: Drop the checkpoints of a stopped run instead of going on.
        tokenizer: Of a model in memory; that of the teacher's name by default.
        folder: Of a model in memory: keeps checkpoints, so that a call with the same folder goes on.
    """

    teacher: Any = option(None, metavar="MODEL")
    data: Iterable[Any] | None = None
    recipe: Recipe | Path | None = None
    _: KW_ONLY
    output: Path | None = option(None, short="-o", required=True)
    text: Iterable[Any] | None = None
    revision: str | None = None
    control: Control | None = None
    train_tokens: int | None = None
    steps: int | None = None
    seed: int | None = None
    cache: bool = False
    settings: Mapping[str, Any] | None = option(None, flag="--set", metavar="KEY=VALUE")
    restart: bool = False
    tokenizer: Any = option(None, python=True)
    folder: Path | None = option(None, python=True)

    def __post_init__(self) -> None:
        if self.train_tokens is not None and self.steps is not None:
            raise FFFError("`train_tokens` and `steps` were both given; expected one")
        for name, low in (("train_tokens", 1), ("steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise FFFError(f"`{name}` is {value}; expected at least {low}")
        if self.control is not None:
            object.__setattr__(self, "control", choice(Control, "control", self.control))
