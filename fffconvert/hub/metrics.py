"""What a converted model's folder says of blocks and training: `metrics.json` and `training.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fffconvert.planning import leaf_in_words


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What became of one block.

    Attributes:
        name: Name of the block.
        trees: Trees of the new layer.
        depth: Their depth.
        trunk: Rank of the trunk.
        leaf_width: Neurons of each leaf block.
        leaf_sparsity: Share of them that a token skips.
        active_width: Neurons of the new layer that a token passes through.
        active_fraction: Their multiply-adds over those of the dense block.
        r2_heldout: Share of the variance of the block's output that the layer explains, on calibration
            text that it was not fitted on; None before the fit, as are all of `fffconvert.fit.Diagnostics`.
        token_r2_heldout: The same with all tokens counting alike: a few tokens often carry nearly all of the
            variance. This is what a usual token keeps.
        routing_entropy: Entropy of the routing on that text, 1 for uniform.
        dead_node_share: Share of nodes that none of it visits.
        path_balance: Tokens at the most visited end of a path over the mean.
        skipped_share: Share of the leaf blocks' neurons that this text skips.
        margins: Quantiles 5 %, 50 % and 95 % of |s| over its mean.
        parameters: Stored parameters of the new layer.
        parameters_before: Those of the block.
        macs_share: The block's share of the model's multiply-adds.
    """

    name: str
    trees: int
    depth: int
    trunk: int = 0
    leaf_width: int = 0
    leaf_sparsity: float = 0.0
    active_width: int
    active_fraction: float
    r2_heldout: float | None = None
    token_r2_heldout: float | None = None
    routing_entropy: float | None = None
    dead_node_share: float | None = None
    path_balance: float | None = None
    skipped_share: float | None = None
    margins: tuple[float, float, float] | None = None
    parameters: int
    parameters_before: int
    macs_share: float

    @property
    def shape(self) -> str:
        """The shape in words: 1x11, with its trunk and leaves."""
        leaf = leaf_in_words(self.leaf_width, self.leaf_sparsity)
        trunk, leaves = f" + trunk {self.trunk}" * bool(self.trunk), f" + leaves of {leaf}"
        return f"{self.trees}x{self.depth}{trunk}{leaves * bool(self.leaf_width)}"


@dataclass(frozen=True)
class Training:
    """What a model was trained on.

    Attributes:
        tokens: Tokens.
        steps: Optimiser steps.
        seconds: Time taken.
        tokens_per_second: Both at once.
        eval_loss: Loss on held-out text; None if it was not evaluated.
        control: Which control was trained; None for a conversion.
        recipe: The recipe in plain values.
    """

    tokens: int
    steps: int
    seconds: float | None = None
    tokens_per_second: float | None = None
    eval_loss: float | None = None
    control: str | None = None
    recipe: dict[str, Any] | None = None


@dataclass(frozen=True)
class Step:
    """A line of `training.jsonl`: means since the line before it.

    Attributes:
        step: Optimiser steps so far, over all stages.
        tokens: Tokens so far.
        stage: Kind of the stage.
        loss: The loss.
        tokens_per_second: Speed.
        learning_rate: Of all but the FFF layers.
        grad_norm: Norm of the gradient.
        eval_loss: Loss on held-out text, where it was evaluated.
        losses: Parts of the loss, by objective.
    """

    step: int
    tokens: int | None = None
    stage: str = ""
    loss: float | None = None
    tokens_per_second: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    eval_loss: float | None = None
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Metrics:
    """`metrics.json`.

    Attributes:
        blocks: What became of each block; empty for controls.
        seconds: Time that the conversion took.
        control: Which control this is; None for a conversion.
        training: What it was trained on; None for none.
    """

    blocks: tuple[BlockResult, ...]
    seconds: float | None = None
    control: str | None = None
    training: Training | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over the converted blocks of a model.

    Attributes:
        blocks: How many.
        r2_lowest: Least held-out R² per token; NaN if it was not measured.
        r2_median: Median held-out R² per token; NaN if it was not measured.
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
    def of(cls, blocks: Sequence[BlockResult]) -> Totals:
        """Sum up blocks, one at least."""
        share = sum(block.macs_share for block in blocks)
        left = sum(block.macs_share * block.active_fraction for block in blocks)
        scores = [math.nan if block.token_r2_heldout is None else block.token_r2_heldout for block in blocks]
        return cls(
            blocks=len(blocks),
            r2_lowest=min(scores),
            r2_median=median(scores),
            macs_left=left / share,
            model_macs_left=1 - share + left,
            parameters_before=sum(block.parameters_before for block in blocks),
            parameters=sum(block.parameters for block in blocks),
        )

    def lines(self) -> list[str]:
        """The sums in words: retained where that was measured, saved, stored."""
        ratio = self.parameters / self.parameters_before
        kept = (
            f"Retained: R² per token of the blocks' outputs on held-out text {self.r2_median:.3f} (median), "
            f"{self.r2_lowest:.3f} (lowest)."
        )
        return [
            *([] if math.isnan(self.r2_median) else [kept]),
            f"Multiply-adds per token: the {self.blocks} blocks need {self.macs_left:.1%} of what they "
            f"needed, the whole model {self.model_macs_left:.1%}.",
            f"Storage: the blocks hold {self.parameters:,} parameters, {self.parameters_before:,} before "
            f"({ratio:.2f} times as many).",
        ]
