"""What the makers of example inputs work with: the model's settings and one source of random numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

LENGTH = 13
"""Tokens, frames or time steps: odd, so that a mistaken axis or a padded power of two shows."""
DECODER_LENGTH = 11


class Context:
    """A model, its settings, and the inputs made for it so far.

    Attributes:
        parameters: What the model's forward takes, by name.
        required: Names of those that must be given: the ones without a default and the main input.
        inputs: The inputs made so far.
        batch: Number of examples: two by default, or one where a classifier knows no padding token.
        length: Tokens of a text.
        decoder_length: Tokens of the text that a decoder reads.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        batch: int = 2,
        length: int = LENGTH,
        decoder_length: int = DECODER_LENGTH,
    ) -> None:
        self.model = model
        self.config = config
        self.parameters = inspect.signature(model.forward).parameters
        main = getattr(model, "main_input_name", None)
        self.required = [
            name
            for name, parameter in self.parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and (parameter.default is parameter.empty or name == main)
        ]
        self.inputs: dict[str, Any] = {}
        alone = self.has_head("SequenceClassification") and self.setting("pad_token_id") is None
        self.batch = 1 if alone else batch
        self.length, self.decoder_length = length, decoder_length
        weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.device, self.dtype = weight.device, weight.dtype
        self._generator = torch.Generator().manual_seed(0)

    def get(self, name: str) -> Any:
        """The input of this name, made on first use; None if forward does not take it or need it."""
        if name not in self.inputs:
            maker = MAKERS.get(name) if name in self.parameters else None
            self.inputs[name] = maker(self) if maker else None
        return self.inputs[name]

    def has_head(self, task: str) -> bool:
        """Whether the model's class is one for this task, as in BertForMultipleChoice."""
        return task in type(self.model).__name__

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the model says it takes: text, image, video, audio, time."""
        declared = getattr(self.model, "input_modalities", ())
        return (declared,) if isinstance(declared, str) else tuple(declared)

    def setting(self, *names: str, part: str = "", default: Any = None) -> Any:
        """The first of these settings that is given.

        Args:
            names: Names of the setting, the usual one first.
            part: Nested configs whose name contains this word are asked before the model's own.
            default: What to answer if none is given.
        """
        return next(self._values(names, part), default)

    def number(self, *names: str, part: str = "", default: int) -> int:
        """Like `setting`, for whole numbers; of a list the first counts."""
        for value in self._values(names, part):
            first = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(first, int) and not isinstance(first, bool):
                return first
        return default

    def _values(self, names: tuple[str, ...], part: str) -> Iterator[Any]:
        for config in nested_configs(self.config, part):
            values = (getattr(config, name, None) for name in names)
            yield from (value for value in values if value is not None)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers in the model's dtype."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32).to(self.device, self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from `low` up to, not including, `high`."""
        return torch.randint(low, high, shape, generator=self._generator).to(self.device)

    def permutation(self, n: int) -> Tensor:
        """The numbers from 0 to `n` - 1, shuffled."""
        return torch.randperm(n, generator=self._generator).to(self.device)

    def constant(self, value: int, *shape: int) -> Tensor:
        """One whole number, repeated."""
        return torch.full(shape, value, dtype=torch.long, device=self.device)

    def numbers(self, values: list[Any]) -> Tensor:
        """A nested list of whole numbers as a tensor."""
        return torch.tensor(values, dtype=torch.long, device=self.device)


def nested_configs(config: Any, part: str = "") -> Iterator[Any]:
    """The config and those inside it: the ones whose name contains `part` first, then outside in."""
    inner = {name: value for name, value in vars(config).items() if hasattr(value, "to_diff_dict")}
    preferred = [name for name in inner if part and part in name]
    for name in preferred:
        yield from nested_configs(inner[name], part)
    yield config
    for name in inner:
        if name not in preferred:
            yield from nested_configs(inner[name], part)


Maker = Callable[[Context], Any]
_Maker = TypeVar("_Maker", bound=Maker)
MAKERS: dict[str, Maker] = {}
"""How each parameter of a forward is made. A maker answers None where the model does not need it."""


def makes(*names: str, only_required: bool = False) -> Callable[[_Maker], _Maker]:
    """Register a function as the maker of the parameters of these names.

    Args:
        names: Names of parameters.
        only_required: Leave the parameter out where forward has a default for it.
    """

    def register(maker: _Maker) -> _Maker:
        for name in names:
            MAKERS[name] = _if_required(name, maker) if only_required else maker
        return maker

    return register


def _if_required(name: str, maker: Maker) -> Maker:
    return lambda context: maker(context) if name in context.required else None
