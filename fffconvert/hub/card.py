"""The model card: what was converted, what was retained, what it costs and how to load it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from fffconvert import __version__
from fffconvert.errors import FFFError, first_line
from fffconvert.planning import leaf_in_words

CARD, EVALUATION = "README.md", "eval.json"
QUALITY_STARTS, QUALITY_ENDS = "<!-- quality -->", "<!-- end of quality -->"
"""Between these stands what `eval.json` says, written anew whenever that changes."""
TRAINED = (
    "The model was trained as `fffconvert.yaml` says, on {tokens:,} tokens in {steps:,} steps. The figures "
    "of the blocks above are from before. Measure on your own task before any use."
)
CONTROL = (
    "This is no conversion but a control, {control!r}: what a conversion is held against, trained by the "
    "same recipe. It is of no use by itself."
)
EXPECT = (
    "Nothing has been trained. The layers are fitted block by block, in closed form, so expect clearly worse "
    "results than the original's, the more so the lower R² is: errors add up from block to block. Measure "
    "on your own task before any use."
)
SAVINGS = (
    "Savings are multiply-adds, counted per token; they are not time: fffconvert deploy shows what each "
    "layer takes on a machine beside the block that it replaced."
)


@dataclass(frozen=True)
class Totals:
    """Sums over the converted blocks of a model.

    Attributes:
        blocks: How many.
        r2_lowest: Least held-out R² per token.
        r2_median: Median held-out R² per token.
        macs_left: Share of the blocks' multiply-adds that is left.
        model_macs_left: The same of the whole model's multiply-adds.
        parameters_before: Parameters of the dense blocks.
        parameters: Parameters of the FFF layers.
    """

    blocks: int
    r2_lowest: float
    r2_median: float
    macs_left: float
    model_macs_left: float
    parameters_before: int
    parameters: int

    @classmethod
    def of(cls, blocks: Sequence[Mapping[str, Any]]) -> Totals:
        """Sum up; `blocks` is the list of that name in `metrics.json`, not empty."""
        share = sum(block["macs_share"] for block in blocks)
        left = sum(block["macs_share"] * block["active_fraction"] for block in blocks)
        scores = [block["token_r2_heldout"] for block in blocks]
        return cls(
            blocks=len(blocks),
            r2_lowest=min(scores),
            r2_median=median(scores),
            macs_left=left / share,
            model_macs_left=1 - share + left,
            parameters_before=sum(block["parameters_before"] for block in blocks),
            parameters=sum(block["parameters"] for block in blocks),
        )

    def lines(self) -> list[str]:
        """The sums in words: retained, saved, stored."""
        ratio = self.parameters / self.parameters_before
        return [
            f"Kept: R² per token of the blocks' outputs on held-out text {self.r2_median:.3f} (median), "
            f"{self.r2_lowest:.3f} (lowest).",
            f"Multiply-adds per token: the {self.blocks} blocks need {self.macs_left:.1%} of what they "
            f"needed, the whole model {self.model_macs_left:.1%}.",
            f"Storage: the blocks hold {self.parameters:,} parameters, {self.parameters_before:,} before "
            f"({ratio:.2f} times as many).",
        ]


def model_card(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        recipe: As stored in `fffconvert.yaml`.
        metrics: As stored in `metrics.json`.

    Returns:
        Markdown with a YAML head.
    """
    base = str(recipe["model"])
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["fffconvert", "fast-feedforward"]}
    if _is_hub_id(base):
        head["base_model"] = base
    blocks, training = metrics["blocks"], metrics.get("training")
    limits = [TRAINED.format(**training) if training else EXPECT, SAVINGS]
    if control := metrics.get("control"):
        limits = [CONTROL.format(control=control)]
    limits.append("The licence and the limits of the original model apply.")
    return f"""\
---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {base} with fast feedforward layers

The feedforward blocks of `{base}` were replaced by fast feedforward (FFF) layers: neurons in balanced binary
trees, of which each token visits one path from root to leaf. Written by fffconvert {__version__}; the recipe
is in `fffconvert.yaml`, the figures below are in `metrics.json`.
{_blocks(blocks) if blocks else ""}
{quality({})}

## How to load it

```python
import fffconvert  # teaches transformers the FFF layers
from transformers import AutoModel

model = AutoModel.from_pretrained("path of this folder")
```

Any other `AutoModelFor…` class works as well. Without fffconvert imported, transformers stops with a shape
mismatch.

## Limits

{_items(limits)}

`fffconvert inspect` shows the layers of this folder.

Reference: Belcak and Wattenhofer, Fast Feedforward Networks (arXiv 2308.14711) and Exponentially Faster
Language Modelling (arXiv 2311.10770).
"""


def quality(evaluation: Mapping[str, Any]) -> str:
    """The card's section on quality, from `eval.json`, with the marks that it is found by."""
    lines = [QUALITY_STARTS, "## Quality", ""]
    tasks = evaluation.get("tasks") or {}
    if tasks:
        columns = ("value", "ci95", "teacher", "dense", "ablated", "random_routing", "retained", "recovered")
        lines += [f"| task | metric | {' | '.join(_HEADS[column] for column in columns)} |"]
        lines += [f"|{' --- |' * (2 + len(columns))}"]
        for name, task in tasks.items():
            called = f"{name} (first {task['limit']:,} rows only)" if task.get("limit") else name
            cells = [called, task["metric"], *(_cell(column, task.get(column)) for column in columns)]
            if task.get("recovered_unclear"):
                cells[-1] = "unclear"
            lines += [f"| {' | '.join(cells)} |"]
        lines += [
            "",
            "Controls of the same budget: a dense block of the same active width, the blocks ablated, random "
            "routing. A converted model that does not beat them gained nothing by its trees. What was "
            "recovered is unclear where deleting the blocks costs nothing that shows. `fffconvert report` "
            "shows more.",
        ]
    else:
        lines += ["Not measured yet: `fffconvert evaluate FOLDER --task sts-b` writes the figures here."]
    return "\n".join([*lines, QUALITY_ENDS])


def update_card(folder: Path) -> bool:
    """Bring the card's figures up to what `eval.json` says; the rest of the card stays as it is.

    Args:
        folder: A converted model.

    Returns:
        Whether the card was changed: not if nothing is new, or if somebody took the marks out of it.

    Raises:
        FFFError: `eval.json` or the card cannot be read, or the card not be written.
    """
    card, document = folder / CARD, folder / EVALUATION
    if not card.is_file() or not document.is_file():
        return False
    try:
        before = card.read_text(encoding="utf-8")
        section = quality(json.loads(document.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FFFError(
            f"cannot read {document}: {first_line(error)}; run fffconvert evaluate again"
        ) from None
    start, end = before.find(QUALITY_STARTS), before.find(QUALITY_ENDS)
    after = before[:start] + section + before[end + len(QUALITY_ENDS) :]
    if not 0 <= start < end or after == before:
        return False
    partial = card.with_name(f".{CARD}.partial-{os.getpid()}")
    try:
        partial.write_text(after, encoding="utf-8")
        partial.replace(card)
    except OSError as error:
        raise FFFError(f"cannot write {card}: {error.strerror}; free some space") from None
    finally:
        partial.unlink(missing_ok=True)
    return True


_HEADS = {
    "value": "converted",
    "ci95": "95 % interval",
    "teacher": "original",
    "dense": "dense",
    "ablated": "ablated",
    "random_routing": "random routing",
    "retained": "retained",
    "recovered": "recovered",
}


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    if column == "ci95":
        return f"{value[0]:.3f} to {value[1]:.3f}"
    return f"{value:.1%}" if column in ("retained", "recovered") else f"{value:.3f}"


def _blocks(blocks: Sequence[Mapping[str, Any]]) -> str:
    """The section on what was retained."""
    rows = [
        f"| {block['name']} | {block['trees']}x{block['depth']} | {block['trunk']} "
        f"| {leaf_in_words(block['leaf_width'], block.get('leaf_sparsity', 0.0))} | {block['active_width']} "
        f"| {block['active_fraction']:.1%} | {block['r2_heldout']:.3f} | {block['token_r2_heldout']:.3f} "
        f"| {block['parameters_before']:,} | {block['parameters']:,} |"
        for block in blocks
    ]
    return f"""
{_items(Totals.of(blocks).lines())}

R² is the share of the variance of a block's output that the layer explains on held-out text. A few tokens
often carry nearly all of it; R² per token lets all tokens count alike.

| block | trees x depth | trunk | leaf | width | MACs left | R² | R² per token | parameters before | now |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _is_hub_id(name: str) -> bool:
    return not name.startswith("pkg:") and not Path(name).expanduser().exists()
