"""A model with a known answer: which feedforward blocks it has, read from its source by hand."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Expected:
    """`count` feedforward blocks of one shape.

    Attributes:
        count: Number of blocks; a block that several layers share counts once.
        kind: "plain", "gated" (two up-projections) or "fused gated" (one of twice the width).
        d_model: Width of the block's input and output.
        d_hidden: Width of its hidden layer, in neurons.
        activation: Name of the activation, or "custom".
        calls: How often one forward pass calls each of them.
    """

    count: int
    kind: str
    d_model: int
    d_hidden: int
    activation: str
    calls: int = 1


def plain(count: int, d_model: int, d_hidden: int, activation: str, calls: int = 1) -> Expected:
    return Expected(count, "plain", d_model, d_hidden, activation, calls)


def gated(count: int, d_model: int, d_hidden: int, activation: str, calls: int = 1) -> Expected:
    return Expected(count, "gated", d_model, d_hidden, activation, calls)


def fused(count: int, d_model: int, d_hidden: int, activation: str, calls: int = 1) -> Expected:
    return Expected(count, "fused gated", d_model, d_hidden, activation, calls)


@dataclass(frozen=True)
class Case:
    """A model with a known answer.

    Attributes:
        name: Unique in its list.
        build: Makes the model in eval mode, the same at each call.
        inputs: Makes the keyword arguments of its forward, the same at each call.
        blocks: The feedforward blocks; every other part must be left alone.
        refused: Parts that are like feedforward blocks and must be named as left alone: a piece of the
            part's dotted name, and a pattern found in the reason.
        generate: The model generates text.
        random: Why its train mode differs from its eval mode even with every dropout at 0.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    blocks: tuple[Expected, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    generate: bool = False
    random: str = ""

    def __str__(self) -> str:
        return self.name


def run(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The first tensor that a forward pass returns, without gradient, under a fixed seed."""
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(**inputs)
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


def hf(
    name: str,
    model_class: str,
    blocks: Iterable[Expected],
    inputs: Callable[[], Inputs],
    *,
    refused: Iterable[tuple[str, str]] = (),
    generate: bool = False,
    random: str = "",
    **config: Any,
) -> Case:
    """A case of a transformers class with a config of the given values."""

    def build() -> nn.Module:
        cls = getattr(transformers, model_class)
        settings = cls.config_class(**config)
        switch_off_randomness(settings)
        torch.manual_seed(0)
        model: nn.Module = cls(settings).eval()
        enliven(model)
        return model

    return Case(name, build, inputs, tuple(blocks), tuple(refused), generate, random)


def switch_off_randomness(config: Any) -> None:
    """Set the probabilities of dropout, layer drop and masking to 0 in a config and the configs within."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            switch_off_randomness(value)
        elif name == "apply_spec_augment":
            config.apply_spec_augment = False
        elif "drop" in name and isinstance(value, numbers.Real) and not isinstance(value, bool):
            setattr(config, name, type(value)(0))


def enliven(model: nn.Module) -> None:
    """Draw all parameters anew, so that biases are not 0 and each block matters to the output."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue  # computed, such as sinusoidal positions: a checkpoint need not hold them
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            else:
                parameter.normal_(0, 0.2)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, low: int = 5, high: int = 61, seed: int = 1) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def text() -> Inputs:
    """Token numbers that are no special tokens: [2, 7]."""
    return {"input_ids": integers(2, 7)}


def text_pair() -> Inputs:
    """Token numbers for an encoder, [2, 7], and a decoder, [2, 5]."""
    return {"input_ids": integers(2, 7), "decoder_input_ids": integers(2, 5, seed=2)}


def image(size: int = 20, channels: int = 3) -> Callable[[], Inputs]:
    return lambda: {"pixel_values": normal(2, channels, size, size)}


def waveform() -> Inputs:
    return {"input_values": normal(2, 401)}
