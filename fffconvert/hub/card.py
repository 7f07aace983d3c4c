"""The model card: what was converted, what was retained, what it costs and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fffconvert import __version__
from fffconvert.cells import cell
from fffconvert.hub.metrics import BlockResult, Metrics, Totals
from fffconvert.planning import leaf_in_words

CARD = "README.md"
QUALITY_STARTS, QUALITY_ENDS = "<!-- quality -->", "<!-- end of quality -->"
"""Between these stands what `eval.json` says (`fffconvert.evaluation.card`)."""
UNMEASURED = "Not measured yet: `fffconvert evaluate FOLDER --task sts-b` writes the figures here."
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


def model_card(recipe: Mapping[str, Any], metrics: Metrics) -> str:
    """Write the card.

    Args:
        recipe: As stored in `fffconvert.yaml`.
        metrics: What `metrics.json` says.

    Returns:
        Markdown with a YAML head.
    """
    base = str(recipe["model"])
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["fffconvert", "fast-feedforward"]}
    if _is_hub_id(base):
        head["base_model"] = base
    training = metrics.training
    trained = TRAINED.format(tokens=training.tokens, steps=training.steps) if training else EXPECT
    limits = [CONTROL.format(control=metrics.control)] if metrics.control else [trained, SAVINGS]
    limits.append("The licence and the limits of the original model apply.")
    return f"""\
---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {base} with fast feedforward layers

The feedforward blocks of `{base}` were replaced by fast feedforward (FFF) layers: neurons in balanced binary
trees, of which each token visits one path from root to leaf. Written by fffconvert {__version__}; the recipe
is in `fffconvert.yaml`, the figures below are in `metrics.json`.
{_blocks(metrics.blocks) if metrics.blocks else ""}
{section()}

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


def section(lines: Sequence[str] = (UNMEASURED,)) -> str:
    """The card's section on quality, with the marks that it is found by."""
    return "\n".join([QUALITY_STARTS, "## Quality", "", *lines, QUALITY_ENDS])


def _blocks(blocks: Sequence[BlockResult]) -> str:
    """The section on what was retained."""
    rows = [
        f"| {block.name} | {block.trees}x{block.depth} | {block.trunk} "
        f"| {leaf_in_words(block.leaf_width, block.leaf_sparsity)} | {block.active_width} "
        f"| {block.active_fraction:.1%} "
        f"| {cell(block, 'r2_heldout:.3f', '–')} | {cell(block, 'token_r2_heldout:.3f', '–')} "
        f"| {block.parameters_before:,} | {block.parameters:,} |"
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
