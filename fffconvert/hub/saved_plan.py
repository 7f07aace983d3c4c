"""Puts the layers of a stored plan into a model. The plan may be a stranger's: it is checked throughout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from fffconvert.errors import FFFError
from fffconvert.location import Placement, Position
from fffconvert.planning import FFFSpec
from fffconvert.records import plain, read
from fffconvert.surgery import install
from fffconvert.tree import FFFLayer


@dataclass(frozen=True)
class SavedLayer:
    """One layer of a plan.

    Attributes:
        placement: Where it goes.
        spec: Its shape.
        dense_weight: Name of a weight that only the original block has.
    """

    placement: Placement
    spec: FFFSpec
    dense_weight: str

    def renamed(self, rename: Callable[[str], str]) -> SavedLayer:
        """The same layer where the names of modules are others."""
        place = self.placement
        placement = replace(
            place,
            entry=tuple(map(rename, place.entry)),
            passed=tuple(map(rename, place.passed)),
            exit=tuple(map(rename, place.exit)),
        )
        return replace(self, placement=placement, dense_weight=rename(self.dense_weight))

    @property
    def paths(self) -> tuple[str, ...]:
        """Every module that is replaced."""
        return (*self.placement.entry, *self.placement.passed, *self.placement.exit)


def install_plan(
    model: PreTrainedModel,
    modules: Mapping[str, Any],
    checkpoint_files: Sequence[str] | None,
    dtype: torch.dtype | None,
) -> dict[str, dict[str, Any]]:
    """Put the layers of a plan into a model whose weights are still to come.

    Args:
        model: The original model, on the meta device.
        modules: The plan, as stored.
        checkpoint_files: Where the weights will come from; the layers' tensors must be there.
        dtype: Of the layers.

    Returns:
        The plan with the names that its modules have in this model. Layers of parts which a model of this
        class does not have are left out.

    Raises:
        FFFError: The plan is malformed, or fits the model or the checkpoint's tensors not.
    """
    saved = {
        name: read(SavedLayer, values, f"the FFF plan of block {name!r}", "checkpoint")
        for name, values in modules.items()
    }
    plan = _rebased(model, saved)
    _check_disjoint(plan)
    for name, layer in plan.items():
        _check_widths(model, name, layer)
    layers = {name: FFFLayer(layer.spec, device="meta", dtype=dtype) for name, layer in plan.items()}
    if checkpoint_files is not None:
        _check_stored(layers, checkpoint_files)
    install(model, {name: (plan[name].placement, layer) for name, layer in layers.items()})
    stored: dict[str, dict[str, Any]] = plain(plan)
    return stored


def _rebased(model: PreTrainedModel, saved: dict[str, SavedLayer]) -> dict[str, SavedLayer]:
    """The plan in this model's names: with, without or with one more of the prefix that heads put before."""
    prefix = f"{model.base_model_prefix}."
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}

    def longer(name: str) -> str:
        return prefix + name

    def shorter(name: str) -> str:
        return name.removeprefix(prefix)

    def present(plan: dict[str, SavedLayer]) -> dict[str, SavedLayer]:
        return {name: layer for name, layer in plan.items() if modules.issuperset(layer.paths)}

    plans = (
        saved,
        {longer(name): layer.renamed(longer) for name, layer in saved.items()},
        {shorter(name): layer.renamed(shorter) for name, layer in saved.items()},
    )
    plan = max((present(plan) for plan in plans), key=len)
    same_class = type(model).__name__ in (model.config.architectures or ())
    if (same_class and len(plan) < len(saved)) or (saved and not plan):
        name = next(name for name, layer in saved.items() if not modules.issuperset(layer.paths))
        raise FFFError(f"{type(model).__name__} has no block {name!r}; the FFF plan belongs to another model")
    return plan


def _check_disjoint(plan: Mapping[str, SavedLayer]) -> None:
    paths = Counter(path for layer in plan.values() for path in layer.paths)
    for path, times in paths.items():
        parts = path.split(".")
        ancestors = (".".join(parts[:end]) for end in range(len(parts)))
        if times > 1 or any(ancestor in paths for ancestor in ancestors):
            raise FFFError(f"the FFF plan replaces module {path!r} twice; convert the model again")


def _check_widths(model: nn.Module, name: str, layer: SavedLayer) -> None:
    """The layer's widths must occur in the shapes of the weights that it replaces."""
    placement, spec = layer.placement, layer.spec
    last = placement.entry if placement.position is Position.MODULE else placement.exit
    for width, paths in ((spec.d_in, placement.entry), (spec.d_out, last)):
        sizes = {size for parameter in model.get_submodule(paths[0]).parameters() for size in parameter.shape}
        if width not in sizes:
            raise FFFError(
                f"block {name!r}: the FFF plan has width {width}, its module has {sorted(sizes)}; "
                "the plan belongs to another model"
            )


def _check_stored(layers: Mapping[str, FFFLayer], files: Sequence[str]) -> None:
    """Nothing may be allocated, let alone at random, that the checkpoint does not hold."""
    stored = Counter(chain.from_iterable(_stored(file) for file in files))
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters():
            shape = tuple(parameter.shape)
            if not stored[key, shape]:
                raise FFFError(
                    f"block {name!r}: its plan asks for {key} of shape {list(shape)}, which the checkpoint "
                    "does not hold; the folder is incomplete, get it again"
                )
            stored[key, shape] -= 1


def _stored(file: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Last name and shape of every FFF tensor in a file. Renaming by transformers leaves those alone."""
    if not file.endswith(".safetensors"):
        raise FFFError(f"weights of a converted model are in {file}; expected safetensors")
    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():
            name = key.rpartition(".")[2]
            if name.startswith("fff_"):
                yield name, tuple(opened.get_slice(key).get_shape())
