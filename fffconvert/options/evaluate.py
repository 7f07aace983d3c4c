"""Options of `evaluate` and `sweep`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from fffconvert.errors import FFFError
from fffconvert.options.common import Texts, Writing
from fffconvert.options.fields import option


@dataclass(frozen=True, kw_only=True)
class Measured(Texts):
    """On what models are measured.

    Attributes:
        data_dir: Folder of local task data; by default data comes from the hub.
        text: Text of the language model tasks: .txt or .jsonl files; WikiText-2 test by default.
        limit: Examples of each task at most, for a quick look; the results say so.
        trust_remote_code: Run code that a model brings along.
    """

    data_dir: Path | None = None
    text: Sequence[str | Path] = option((), flag="--text")
    limit: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 2:
            raise FFFError(f"`limit` is {self.limit}; expected at least 2")


@dataclass(frozen=True)
class EvaluateOptions(Measured):
    """What a model is measured on, and beside what.

    Attributes:
        tasks: What to measure: sts-b, sts12 to sts16, sick-r (or sts), retrieval, probe-ag-news, probe-imdb,
            probe-mr, probe-subj, probe-20newsgroups (or probe), cola, sst-2, mrpc, glue-sts-b, qqp, mnli,
            mnli-mm, qnli, rte, wnli (or glue), mlm, pseudo-perplexity, perplexity, agreement,
            token-agreement, robustness, ablation, routing.
        teacher: The model before conversion; by default what the folder of a conversion says that it was.
        controls: Models to hold it against, by name: ablated, dense, random-routing or others.
        seeds: Runs of tasks that train; the median counts.
        epochs: Passes over the training rows of tasks that train.
        device: Where models given by name compute: cpu or cuda.
        output: File for the results, besides eval.json in a converted model's folder.
        revision: Branch, tag or commit of a hub id.
        tokenizer: Of models in memory.
    """

    tasks: Sequence[str] = option(flag="--task")
    _: KW_ONLY
    teacher: Any = option(None, metavar="MODEL")
    controls: Mapping[str, Any] | None = option(None, flag="--control")
    seeds: int = 1
    epochs: int = 5
    device: str = "cpu"
    output: Path | None = option(None, short="-o")
    revision: str | None = None
    tokenizer: Any = option(None, python=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "epochs"):
            if getattr(self, name) < 1:
                raise FFFError(f"`{name}` is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class SweepOptions(Measured, Writing):
    """A grid of conversions, each of which is measured.

    Attributes:
        output: Folder for sweep.json and sweep.png.
        depths: Depths of the trees, as in 2,5,8.
        tasks: What to measure; the first is what is traded against work.
        trees: Numbers of trees, as in 1,4.
        leaf_widths: Neurons of the leaf blocks, as in 0,32.
        trunks: Ranks of the linear map beside the trees.
        calibration: Text to fit on, as in convert.
        tokens: Calibration tokens, those held out included.
        refine: Passes of gradient steps, as in convert.
        seeds: Runs of tasks that train; the median counts.
        epochs: Passes over the training rows of tasks that train.
        keep: Keep the converted models.
    """

    output: Path = option(short="-o")
    depths: tuple[int, ...] = option()
    tasks: Sequence[str] = option(flag="--task")
    _: KW_ONLY
    trees: tuple[int, ...] = (1,)
    leaf_widths: tuple[int, ...] = (0,)
    trunks: tuple[int, ...] = (0,)
    calibration: Iterable[Any] | None = None
    tokens: int = 100_000
    refine: int = 0
    seeds: int = 1
    epochs: int = 5
    keep: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depths", "trees", "leaf_widths", "trunks"):
            if not getattr(self, name):
                raise FFFError(f"`{name}` is empty; expected at least one number")

    @property
    def grid(self) -> dict[str, tuple[int, ...]]:
        """The numbers that are combined, by the option of `convert`."""
        return {
            "depth": self.depths,
            "trees": self.trees,
            "leaf_width": self.leaf_widths,
            "trunk": self.trunks,
        }

    @property
    def measured(self) -> dict[str, Any]:
        """The options of `evaluate` at each point."""
        names = {field.name for field in dataclasses.fields(EvaluateOptions)} - {"output", "tasks"}
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in names
        }
