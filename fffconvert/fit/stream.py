"""The inputs of a model's blocks one after the other, in one forward pass over the text in all.

The hidden states between two layers are kept, in memory or on disk, so that nothing is run from the model's
start again. Models whose layers are no plain chain are run from the start for each block instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.errors import FFFError
from fffconvert.fit.calibrate import Batch, Reached, block_inputs, captured_inputs, on_device
from fffconvert.forward import evaluation
from fffconvert.location import FFNSite

MEMORY = 4 << 30
"""Bytes of hidden states that are held in memory; more go to a temporary file."""


class ActivationStream:
    """What each block of a model is given, whatever stands in the place of the blocks before it.

    Ask for the blocks in the order in which they run: a layer is left once a block behind it is asked for,
    with what has been put into it by then.

    Args:
        model: The model.
        sites: Its blocks.
        batches: Keyword arguments of forward passes.
    """

    def __init__(self, model: nn.Module, sites: Sequence[FFNSite], batches: Sequence[Batch]) -> None:
        self._model, self._batches = model, batches
        self._path = _chain_path(model, sites)
        if self._path is not None and not _is_chain(model, self._layers, batches[0]):
            self._path = None
        self._calls: list[_Call] = []
        self._done = 0
        self._file: tempfile.TemporaryDirectory[str] | None = None

    @property
    def one_pass(self) -> bool:
        """Whether the model's layers are a chain, so that one forward pass in all is enough."""
        return self._path is not None

    def inputs(self, site: FFNSite) -> list[Tensor]:
        """What the block is given: [tokens, d_model] for each batch, in float32 on the CPU, without padding.

        Raises:
            FFFError: The block was not reached, or was given values that are not finite.
        """
        if self._path is None:
            return [block_inputs(self._model, site, [batch]) for batch in self._batches]
        with evaluation(self._model), _without_cache(self._model):
            if not self._calls:
                self._start()
            layer = _layer_of(site, self._path)
            if layer is None or layer < self._done:
                raise FFFError(f"block {site.name} was asked for out of turn; ask in the order of the layers")
            while self._done < layer:
                for call in tqdm(self._calls, desc=f"layer {self._done}", leave=False, disable=None):
                    call.state.copy_(_first(call.run(self._layers[self._done])))
                self._done += 1
            calls = zip(self._batches, self._calls, strict=True)
            bar = tqdm(calls, desc=site.name, total=len(self._calls), leave=False, disable=None)
            return [self._until(site, batch, call) for batch, call in bar]

    @property
    def _layers(self) -> nn.ModuleList:
        layers = self._model.get_submodule(self._path or "")
        assert isinstance(layers, nn.ModuleList)
        return layers

    def _start(self) -> None:
        """Run every batch up to the first layer, and keep what that is called with."""
        calls = [_catch(self._model, self._layers[0], batch) for batch in self._batches]
        size = sum(call.state.numel() for call in calls)
        if size * calls[0].state.element_size() > MEMORY:
            self._file = tempfile.TemporaryDirectory(prefix="fffconvert-")
            path = str(Path(self._file.name, "states"))
            stored = torch.from_file(path, shared=True, size=size, dtype=calls[0].state.dtype)
        else:
            stored = torch.empty(size, dtype=calls[0].state.dtype)
        start = 0
        for call in calls:
            kept = stored[start : start + call.state.numel()].view_as(call.state)
            kept.copy_(call.state)
            self._calls.append(_Call(kept, call.rest, call.keywords))
            start += call.state.numel()

    def _until(self, site: FFNSite, batch: Batch, call: _Call) -> Tensor:
        """Run a layer until its block is reached."""
        with captured_inputs(self._model, site, batch) as taken, suppress(Reached):
            call.run(self._layers[self._done])
        return taken[0]


@dataclass(frozen=True)
class _Call:
    """How a layer is called for one batch: hidden states first, then what all layers are given alike."""

    state: Tensor
    rest: tuple[Any, ...]
    keywords: dict[str, Any]

    def run(self, layer: nn.Module) -> Any:
        device = next((p.device for p in layer.parameters()), self.state.device)
        return layer(self.state.to(device), *self.rest, **self.keywords)


def _chain_path(model: nn.Module, sites: Sequence[FFNSite]) -> str | None:
    """The list of layers that holds all blocks, none of them called twice; None if there is none."""
    paths = set()
    for site in sites:
        parts = site.placement.entry[0].split(".")
        lists = (
            ".".join(parts[:n])
            for n in range(1, len(parts) - 1)
            if isinstance(model.get_submodule(".".join(parts[:n])), nn.ModuleList)
        )
        paths.add(next(lists, None) if site.shared_calls == 1 and len(site.placement.entry) == 1 else None)
    return paths.pop() if len(paths) == 1 else None


def _layer_of(site: FFNSite, path: str) -> int | None:
    entry = site.placement.entry[0]
    return int(entry[len(path) + 1 :].split(".")[0]) if entry.startswith(path + ".") else None


def _is_chain(model: nn.Module, layers: nn.ModuleList, batch: Batch) -> bool:
    """Whether each layer is given the output of the one before, and all else as the first layer."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    outputs: list[Any] = []
    handles = []
    for layer in layers:
        handles.append(
            layer.register_forward_pre_hook(lambda _, a, k: calls.append((a, dict(k))), with_kwargs=True)
        )
        handles.append(layer.register_forward_hook(lambda _, __, output: outputs.append(_first(output))))
    try:
        with evaluation(model), _without_cache(model):
            model(**on_device(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != len(layers) or not all(args and isinstance(args[0], Tensor) for args, _ in calls):
        return False
    first_args, first_keywords = calls[0]
    if not _is_plain([*first_args[1:], *first_keywords.values()]):
        return False
    return all(
        _same(args[0], output) and _same(args[1:], first_args[1:]) and _same(keywords, first_keywords)
        for (args, keywords), output in zip(calls[1:], outputs, strict=False)
    )


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _is_plain(value: Any) -> bool:
    """Whether a value can be given to a layer again and again: no cache or other object with a state."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _catch(model: nn.Module, layer: nn.Module, batch: Batch) -> _Call:
    """Run the model until a layer is called."""
    caught: list[_Call] = []

    def take(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        caught.append(_Call(args[0].detach().cpu(), args[1:], dict(keywords)))
        raise Reached

    handle = layer.register_forward_pre_hook(take, with_kwargs=True)
    try:
        with suppress(Reached):
            model(**on_device(model, batch))
    finally:
        handle.remove()
    return caught[0]


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """A cache of keys and values would grow with every run of a layer."""
    config = getattr(model, "config", None)
    if not getattr(config, "use_cache", False):
        yield
        return
    config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        config.use_cache = True  # type: ignore[union-attr]
