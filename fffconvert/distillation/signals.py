"""What a model shows on a batch: states, attention maps, predictions, and what its blocks take and give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fffconvert import surgery
from fffconvert.distillation.recipe import Pooling
from fffconvert.errors import FFFError
from fffconvert.location import Placement, Position
from fffconvert.tree import FFFLayer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Of a batch, what models are called with."""


class TopLogits(NamedTuple):
    """The likeliest predictions, and what is left for all others.

    Attributes:
        tokens: [positions, k]
        log_p: [positions, k], at the temperature of the recipe.
    """

    tokens: Tensor
    log_p: Tensor


@dataclass(frozen=True)
class Wanted:
    """What to take from a run.

    Attributes:
        states: All states between layers; the last one alone comes always.
        attention: Attention maps.
        logits: Predictions.
        blocks: What the blocks take and give.
    """

    states: bool = False
    attention: bool = False
    logits: bool = False
    blocks: bool = False


@dataclass
class Signals:
    """What was taken.

    Attributes:
        last: [sequences, tokens, d], the state behind the last layer.
        states: The same after the embedding and each layer.
        embedding: [sequences, d], of length 1, where it stands in for `last`.
        attention: [sequences, heads, tokens, tokens] for each layer.
        logits: [positions, vocabulary] at the positions asked for, or [sequences, classes].
        block_inputs: [sequences, tokens, d] for each block.
        block_outputs: The same.
    """

    last: Tensor
    states: tuple[Tensor, ...] = ()
    embedding: Tensor | None = None
    attention: tuple[Tensor, ...] = ()
    logits: Tensor | TopLogits | None = None
    block_inputs: list[Tensor] = field(default_factory=list)
    block_outputs: list[Tensor] = field(default_factory=list)


class Taps(NamedTuple):
    """Modules whose input and output are those of the blocks, in order."""

    entry: list[nn.Module]
    exit: list[nn.Module]
    axes: list[int]


Places = Mapping[str, Placement]
"""Where blocks are, by name."""


def placements(model: nn.Module) -> Places:
    """Where a converted model's layers stand."""
    return {name: placed.placement for name, placed in surgery.layers_of(model).items()}


def taps_of(model: nn.Module, places: Places) -> Taps:
    """The blocks of a model, dense ones or FFF layers.

    Raises:
        FFFError: It has no such modules.
    """
    taps = Taps([], [], [])
    layers = surgery.layers_of(model)
    for name, place in places.items():
        own = next((layers[n].layer for n in surgery.names_of(name, model) if n in layers), None)
        last = place.entry if place.position is Position.MODULE else place.exit
        entry, exit_ = (own or _module(model, paths[0]) for paths in (place.entry, last))
        if entry is None or exit_ is None:
            raise FFFError(f"{type(model).__name__} has no block {name!r}; give the model that was converted")
        taps.entry.append(entry)
        taps.exit.append(exit_)
        taps.axes.append(place.feature_axis)
    return taps


def layers_of(model: nn.Module, places: Places) -> list[FFFLayer]:
    """A converted model's layers, in the order of the blocks; none if it is not converted."""
    return [layer for layer in taps_of(model, places).entry if isinstance(layer, FFFLayer)]


def _module(model: nn.Module, path: str) -> nn.Module | None:
    """A module by its name in this model or below or without a head."""
    for name in surgery.names_of(path, model):
        try:
            return model.get_submodule(name)
        except AttributeError:
            continue
    return None


def run(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    wanted: Wanted,
    taps: Taps | None = None,
    positions: Tensor | None = None,
) -> Signals:
    """Run a model over a batch.

    Args:
        model: A transformers model.
        batch: Its inputs, and whatever else.
        wanted: What to take.
        taps: Its blocks, if they are wanted.
        positions: [sequences, tokens], where token predictions are wanted; the output projection is computed
            there alone. None for models that classify.
    """
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    taken = Signals(last=torch.empty(0))
    with _tapped(taps if wanted.blocks else None, taken), _at(model, positions if wanted.logits else None):
        outputs = model(
            **inputs,
            output_hidden_states=wanted.states or "last_hidden_state" not in _fields(model),
            output_attentions=wanted.attention,
            return_dict=True,
        )
    states = outputs.get("hidden_states") or ()
    taken.last = states[-1] if states else outputs["last_hidden_state"]
    taken.states = tuple(states) if wanted.states else ()
    taken.attention = tuple(outputs["attentions"]) if wanted.attention else ()
    if wanted.logits:
        logits = outputs.get("logits", outputs.get("prediction_logits"))
        in_place = positions is not None and logits.shape[:-1] == positions.shape
        taken.logits = logits[positions] if in_place else logits.flatten(0, -2)
    return taken


def _fields(model: nn.Module) -> tuple[str, ...]:
    """`last_hidden_state` if the model has no head."""
    return ("last_hidden_state",) if getattr(model, "base_model", None) is model else ()


@contextmanager
def _at(model: nn.Module, positions: Tensor | None) -> Iterator[None]:
    """Compute the output projection at some positions only: it is often the widest product of all."""
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    projection = find()
    if positions is None or not isinstance(projection, nn.Module):
        yield
        return

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        return (x[positions], *args[1:]) if x.shape[:-1] == positions.shape else args

    handle = projection.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _tapped(taps: Taps | None, taken: Signals) -> Iterator[None]:
    handles = []
    for entry, exit_, axis in zip(*taps, strict=True) if taps else ():

        def before(_: nn.Module, args: tuple[Any, ...], axis: int = axis) -> None:
            taken.block_inputs.append(args[0].movedim(axis, -1))

        def after(_: nn.Module, __: Any, output: Tensor, axis: int = axis) -> None:
            taken.block_outputs.append(output.movedim(axis, -1))

        handles += [entry.register_forward_pre_hook(before), exit_.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pooled(state: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Sentence embeddings of length 1.

    Args:
        state: [sequences, tokens, d]
        mask: [sequences, tokens], 1 at tokens.
        pooling: How.

    Returns:
        [sequences, d] in float32.
    """
    state = state.float()
    if pooling is Pooling.MEAN:
        weight = mask[..., None].float()
        embedding = (state * weight).sum(1) / weight.sum(1).clamp(min=1)
    elif pooling is Pooling.CLS:
        embedding = state[:, 0]
    else:
        embedding = state[torch.arange(len(state), device=state.device), mask.sum(1) - 1]
    return torch.nn.functional.normalize(embedding, dim=-1)


def chosen_states(signals: Signals, layers: Sequence[int]) -> list[Tensor]:
    """The states that an objective compares: those named, or all but the embedding's."""
    if tuple(layers) == (-1,):
        return [signals.last]
    return [signals.states[layer] for layer in layers] if layers else list(signals.states[1:])
