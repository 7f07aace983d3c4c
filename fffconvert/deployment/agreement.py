"""Does a deployed model still say what it said before? Outputs on text, compared position by position."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.deployment.outputs import main_output
from fffconvert.fit.corpus import default_corpus, rendered
from fffconvert.fit.length import longest
from fffconvert.fit.rows import Row
from fffconvert.forward import evaluation
from fffconvert.location.inputs import example_inputs

TEXTS = 64
LENGTH = 128
BATCH = 8


@dataclass(frozen=True)
class Agreement:
    """How near the outputs of one model are to another's.

    Attributes:
        measure: "same prediction" (logits: share of positions where both put the same class or token first)
            or "cosine" (other outputs: mean over positions).
        value: 1 for equal outputs.
        cosine: Mean cosine of the outputs, whatever the measure.
        positions: How many were compared.
        inputs: "text", or "random" where the model has no tokenizer.
    """

    measure: str
    value: float
    cosine: float
    positions: int
    inputs: str


class Outputs:
    """The outputs of a model on fixed inputs, to hold others against.

    Args:
        model: The model as it should be; run here once.
        tokenizer: Its tokenizer; without one, inputs are random.
        texts: What to read; by default prose that comes with Python.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any | None, texts: Iterable[str | Row] | None = None
    ) -> None:
        self._kind, self._batches = _batches(model, tokenizer, texts)
        self._expected = list(self._run(model))

    def agreement(self, model: nn.Module) -> Agreement:
        """Run another model on the same inputs and compare."""
        cosine = same = 0.0
        positions = 0
        names = {name for name, _ in self._expected}
        for (_, expected), (_, found) in zip(self._expected, self._run(model), strict=True):
            cosine += float(nn.functional.cosine_similarity(found.double(), expected.double(), dim=-1).sum())
            same += float((found.argmax(-1) == expected.argmax(-1)).sum())
            positions += len(expected)
        predicts = names == {"logits"} and expected.shape[-1] > 1
        value = (same if predicts else cosine) / positions
        measure = "same prediction" if predicts else "cosine"
        return Agreement(measure, value, cosine / positions, positions, self._kind)

    @torch.inference_mode()
    def _run(self, model: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """The main output of each batch, [positions, d], without padding."""
        result = []
        with evaluation(model):
            for batch in self._batches:
                output = model(**copy.copy(batch))
                name, tensor = main_output(output)
                mask = batch.get("attention_mask")
                if isinstance(mask, Tensor) and mask.shape == tensor.shape[:-1]:
                    tensor = tensor[mask.bool()]
                result.append((name, tensor.reshape(-1, tensor.shape[-1]).float()))
        return result


def _batches(
    model: nn.Module, tokenizer: Any | None, texts: Iterable[str | Row] | None
) -> tuple[str, list[dict[str, Any]]]:
    device = next(model.parameters()).device
    if tokenizer is None:
        return "random", [example_inputs(model)]
    given = default_corpus(TEXTS * 600) if texts is None else texts
    chosen = list(islice((part for text in given for part in rendered(text, tokenizer)), TEXTS))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    parts = (chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH))
    most = longest(model, tokenizer, LENGTH)
    options: dict[str, Any] = {"truncation": True, "max_length": most, "return_tensors": "pt"}
    return "text", [dict(tokenizer(part, padding=True, **options).to(device)) for part in parts]
