"""The models that are compared: the converted one, its teacher, its controls."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fffconvert import hub
from fffconvert.errors import FFFError
from fffconvert.store import fingerprint

PROBE = "The 3 quick brown foxes, café-owners all, jumped over it; weren't they (C)C1=CC?"
"""A text that tokenizers treat differently."""


class Subject:
    """A model by name, read when it is first needed, or one in memory.

    Args:
        role: What it is among the compared ones: "model", "teacher" or a control's name.
        model: A name that `fffconvert.load` takes, or the model itself.
        tokenizer: Of a model in memory, or of a folder that has none.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run the code that a repository brings along.
        device: Where a model that is read by name goes.
    """

    def __init__(
        self,
        role: str,
        model: str | Path | nn.Module,
        tokenizer: Any = None,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.role = role
        self._given = model
        self._tokenizer = tokenizer
        self._revision, self._trust_remote_code = revision, trust_remote_code
        self._device = device

    @property
    def name(self) -> str:
        """What the user calls it."""
        return type(self._given).__name__ if isinstance(self._given, nn.Module) else str(self._given)

    @cached_property
    def _loaded(self) -> hub.Loaded | None:
        if isinstance(self._given, nn.Module):
            return None
        loaded = hub.load(
            str(self._given), revision=self._revision, trust_remote_code=self._trust_remote_code
        )
        loaded.model.to(self._device)
        return loaded

    @property
    def model(self) -> nn.Module:
        """The model."""
        model: nn.Module = self._given if self._loaded is None else self._loaded.model  # type: ignore[assignment]
        return model

    @property
    def source(self) -> hub.Source | None:
        """Where it was read from; None for a model in memory."""
        return None if self._loaded is None else self._loaded.source

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer.

        Raises:
            FFFError: There is none.
        """
        own = None if self._loaded is None else self._loaded.tokenizer
        found = self._tokenizer if own is None else own
        if found is None:
            raise FFFError(
                f"{self.role} {self.name} has no tokenizer; save one in its folder, or pass tokenizer="
            )
        return found

    @cached_property
    def key(self) -> str:
        """A name for what it computes: weights, structure, deployment, tokenizer."""
        known = isinstance(self.tokenizer, PreTrainedTokenizerBase)
        tokens = self.tokenizer if known else [self.tokenizer(PROBE)["input_ids"], len(self.tokenizer)]
        return fingerprint(self.model, tokens)

    @property
    def width(self) -> int | None:
        """Width of its hidden states, where its config says so."""
        return getattr(getattr(self.model, "config", None), "hidden_size", None)

    def release(self) -> None:
        """Forget what was read; it is read again when it is needed."""
        self.__dict__.pop("_loaded", None)


def check_comparable(model: Subject, other: Subject) -> None:
    """Refuse a teacher or control that reads or computes something else than the model.

    Raises:
        FFFError: It has another tokenizer or another width.
    """
    own, others = model.tokenizer, other.tokenizer
    if len(own) != len(others) or own(PROBE)["input_ids"] != others(PROBE)["input_ids"]:
        raise FFFError(
            f"{other.role} {other.name} has another tokenizer ({len(others):,} tokens) than {model.name} "
            f"({len(own):,} tokens); give the model that {model.name} was converted from, or one like it"
        )
    if model.width != other.width:
        raise FFFError(
            f"{other.role} {other.name} has width {other.width}, {model.name} {model.width}; "
            f"give the model that {model.name} was converted from, or one like it"
        )
