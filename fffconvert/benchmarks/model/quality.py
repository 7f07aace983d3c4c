"""What each runtime keeps: similarity of sentences, embedded by the very process that is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fffconvert import hub
from fffconvert.benchmarks.model.inputs import read
from fffconvert.benchmarks.model.settings import ModelBench
from fffconvert.benchmarks.model.torch_models import original_name
from fffconvert.deployment.outputs import main_output
from fffconvert.errors import FFFError
from fffconvert.evaluation.data import read_table
from fffconvert.evaluation.metrics import SPEARMAN
from fffconvert.evaluation.sentence import similarity
from fffconvert.evaluation.tasks import SIMILARITY
from fffconvert.forward import evaluation
from fffconvert.location.inputs import example_inputs

ASKED, ANSWERED = "asked.npz", "answered.npy"


class Quality:
    """The task and its data, read before anything is timed.

    Args:
        settings: Those of the benchmark, with a task.
        values: The same as plain values.
        folder: Where the inputs of the benchmark will lie.

    Raises:
        FFFError: There is no such task or data, or the model has no tokenizer.
    """

    def __init__(self, settings: ModelBench, values: dict[str, Any], folder: Path) -> None:
        if settings.task not in SIMILARITY:
            raise FFFError(f"`task` is {settings.task!r}; expected one of {', '.join(SIMILARITY)}")
        self._rows, _ = read_table(SIMILARITY[settings.task], settings.data_dir)
        loaded = hub.load(original_name(values), trust_remote_code=settings.trust_remote_code)
        if loaded.tokenizer is None:
            raise FFFError(f"`task={settings.task}` needs a tokenizer, which {settings.model} lacks")
        with evaluation(loaded.model):
            output = main_output(loaded.model(**example_inputs(loaded.model)))[0]
        if output == "logits":
            raise FFFError(f"`task={settings.task}` needs a model without head, found one with logits")
        self._tokenizer, self._config = loaded.tokenizer, loaded.model.config
        self._folder, self._size = folder, settings.sizes[0]

    def score(self, ask: Callable[..., Any]) -> float:
        """Spearman correlation of cosines with grades.

        Args:
            ask: Has a runtime run on a file of arrays: `ask("run", inputs=…, output=…)`.
        """
        names = list(read(self._folder, self._size)[0])
        remote = _Remote(ask, self._folder, names, self._config)
        return SPEARMAN.compute(similarity(remote, self._tokenizer, self._rows))


class _Remote(nn.Module):
    """An encoder in another process."""

    def __init__(self, ask: Callable[..., Any], folder: Path, names: Sequence[str], config: Any) -> None:
        super().__init__()
        self._ask, self._folder, self._names, self.config = ask, folder, names, config
        self.place = nn.Parameter(torch.zeros(1))  # says that tensors are to come on the CPU

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """The hidden states of [sequences, tokens]: [sequences, tokens, d_model]."""
        known = {"input_ids": input_ids, "attention_mask": attention_mask}
        arrays: dict[str, Any] = {
            name: known.get(name, torch.zeros_like(input_ids)).numpy() for name in self._names
        }
        asked, answered = self._folder / ASKED, self._folder / ANSWERED
        np.savez(asked, **arrays)
        self._ask("run", inputs=str(asked), output=str(answered))
        return (torch.from_numpy(np.load(answered)),)
