"""Put layers in the place of located blocks, check that the places are right, and take the layers out again.

Modules are swapped and forwards are kept, so a converted model is still of its own class. All checks come
first, mutation last.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fffconvert.errors import FFFError, first_line
from fffconvert.forward import evaluation, tensors_in
from fffconvert.location import FFNSite, Placement, Position, Sites, Skipped
from fffconvert.standins import Bypassed, FirstProjection, Handover, LastProjection, StandIn
from fffconvert.tree import FFFLayer

VERIFY_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error, relative to the largest output, that rounding explains when a block is computed anew."""


def replace(model: nn.Module, layers: Mapping[FFNSite, nn.Module]) -> None:
    """Put a module in the place of each located block.

    The original blocks stay in memory, for `restore`, until `drop_originals` or the end of the model.

    Args:
        model: The model in which the blocks were located.
        layers: A module [..., d_model] to [..., d_model] for each block (features on the block's
            `feature_axis`). It takes on the training mode, device and dtype of what it replaces.

    Raises:
        FFFError: A block is not where it was located; the model is unchanged.
    """
    record = install(model, {site.name: (site.placement, layer) for site, layer in layers.items()})
    earlier = _replaced.setdefault(model, Replaced())
    earlier.swaps += record.swaps
    earlier.settings += record.settings
    earlier.layers += [(layer, site) for site, layer in layers.items()]


def drop_originals(model: nn.Module) -> None:
    """Forget the original blocks of a model: `restore` will not know them."""
    _replaced.pop(model, None)


def original(model: nn.Module, layer: nn.Module) -> nn.Module | None:
    """The block whose place a layer took, as a module; None if this process did not replace it."""
    record = _replaced.get(model, Replaced())
    return next((site.dense() for placed, site in record.layers if placed is layer), None)


class Placed(NamedTuple):
    """An FFF layer where it stands in a model.

    Attributes:
        path: Name of the layer's own module.
        layer: The layer.
        placement: The modules whose places it took, by the names that they have in this model.
        replaced_weight: Name that a weight of the original block had in this model; None for a layer that
            was put in by hand.
    """

    path: str
    layer: FFFLayer
    placement: Placement
    replaced_weight: str | None


def layers_of(model: nn.Module) -> dict[str, Placed]:
    """The FFF layers that stand in a model, by the names of the blocks whose places they took.

    This is the one mapping from block to layer. It goes by the modules that are there, not by what a config
    says, so it holds for whatever part of a model it is given.

    Args:
        model: Any module, in its own names.

    Returns:
        The layers in the order of the model's modules.
    """
    standing: dict[FFFLayer, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        layer = module.computed_by if isinstance(module, StandIn) else module
        if isinstance(layer, FFFLayer):
            standing.setdefault(layer, []).append((path, module))
    placed = (_placed(layer, modules) for layer, modules in standing.items())
    return {found.placement.entry[0]: found for found in placed}


def _placed(layer: FFFLayer, modules: list[tuple[str, nn.Module]]) -> Placed:
    """Where a layer stands, from the paths of the layer and of what stands in for its block's modules."""

    def at(kind: type[nn.Module]) -> tuple[str, ...]:
        return tuple(path for path, module in modules if isinstance(module, kind))

    first = next((module for _, module in modules if isinstance(module, FirstProjection)), None)
    if first is None:
        placement = Placement(Position.MODULE, at(FFFLayer), feature_axis=layer.spec.feature_axis)
        weight, place = layer.replaced_weight, placement.entry[0]
    else:
        placement = dataclasses.replace(
            first.placement, entry=at(FirstProjection), passed=at(Bypassed), exit=at(LastProjection)
        )
        last = next(module for _, module in modules if isinstance(module, LastProjection))
        weight, place = last.replaced_weight, placement.exit[0]
    return Placed(at(FFFLayer)[0], layer, placement, f"{place}.{weight}" if weight else None)


def names_of(name: str, model: nn.Module) -> tuple[str, ...]:
    """The names that a module of this name may have in a model of the same kind with or without a head."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return (name, prefix + name, name.removeprefix(prefix))


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Take back what is replaced in the body if that fails; earlier replacements stay."""
    before = _replaced.get(model, Replaced())
    swaps, settings, layers = len(before.swaps), len(before.settings), len(before.layers)
    try:
        yield
    except BaseException:
        record = _replaced.get(model, Replaced())
        Replaced(record.swaps[swaps:], record.settings[settings:]).undo()
        del record.swaps[swaps:], record.settings[settings:], record.layers[layers:]
        raise


@torch.inference_mode(False)  # a layer that is moved in inference mode could never be trained
def install(model: nn.Module, layers: Mapping[str, tuple[Placement, nn.Module]]) -> Replaced:
    """Put modules in given places, as `replace` does; for placements read from a checkpoint.

    Returns:
        What was taken out.

    Raises:
        FFFError: A placement does not fit the model; the model is unchanged.
    """
    for name, (placement, _) in layers.items():
        _check(model, name, placement)
    record = Replaced()
    for placement, layer in layers.values():
        _install(model, placement, layer, record)
    return record


@torch.inference_mode(False)
def restore(model: nn.Module) -> None:
    """Put back the blocks that `replace` took out of this very model.

    They take on the training mode, device and dtype that the model has by now.

    Raises:
        FFFError: The model holds no originals: nothing was replaced, they were not kept, or it is a copy or
            was loaded.
    """
    record = _replaced.pop(model, None)
    if record is None or not record.swaps:
        raise FFFError(
            "this model holds no original blocks: it is a copy, was loaded converted, or was converted with "
            "keep_originals=False; load the original"
        )
    record.undo()


def verify(model: nn.Module, sites: Sites, inputs: Mapping[str, Any]) -> Sites:
    """Check each place by computing its block anew there: the model must give the same outputs.

    Args:
        model: The model in which the blocks were located; it is left as it was.
        sites: The blocks.
        inputs: Keyword arguments of one forward pass.

    Returns:
        The blocks that can be replaced; the others are moved to `skipped` with the reason.
    """
    expected = _run(model, inputs)
    if _difference(model, list(sites), inputs, expected) is None:
        return sites
    kept, skipped = [], list(sites.skipped)
    for site in sites:
        reason = _difference(model, [site], inputs, expected)
        if reason is None:
            kept.append(site)
        else:
            skipped.append(Skipped(site.name, reason))
    return Sites(kept, skipped)


def _difference(
    model: nn.Module, sites: list[FFNSite], inputs: Mapping[str, Any], expected: list[Tensor]
) -> str | None:
    """What goes wrong when the blocks are replaced by exact copies of themselves."""
    record = install(model, {site.name: (site.placement, site.dense()) for site in sites})
    try:
        found = _run(model, inputs)
    except Exception as error:  # whatever a foreign forward raises is a reason not to touch it
        return f"the model fails with the block replaced ({type(error).__name__}: {first_line(error)})"
    finally:
        record.undo()
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return "the model gives other outputs with the block replaced by an exact copy"
    for one, other in zip(found, expected, strict=True):
        if not one.is_floating_point():
            continue
        scale = other.abs().nan_to_num(posinf=0).max().clamp(min=1e-3) if other.numel() else 1.0
        tolerance = VERIFY_TOLERANCE.get(one.dtype, 1e-1) * float(scale)
        if not torch.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True):
            return f"the model's output changes by {float((one - other).abs().max()):.1e} with an exact copy"
    return None


def _run(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    with evaluation(model):
        return tensors_in(model(**inputs))


class Swap(NamedTuple):
    """One module that was taken out.

    Attributes:
        owner: The module that held it.
        name: The attribute under which it did.
        original: The module.
        kind: Device and dtype of the layer that came, then; None for one without floating-point parameters.
    """

    owner: nn.Module
    name: str
    original: nn.Module
    kind: tuple[torch.device, torch.dtype] | None


@dataclass
class Replaced:
    """What was taken out of a model, and the layers that stand there now."""

    swaps: list[Swap] = field(default_factory=list)
    settings: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    layers: list[tuple[nn.Module, FFNSite]] = field(default_factory=list)

    def undo(self) -> None:
        """Put everything back."""
        for swap in reversed(self.swaps):
            _follow(swap, getattr(swap.owner, swap.name))
            setattr(swap.owner, swap.name, swap.original)
        for owner, name, value in reversed(self.settings):
            setattr(owner, name, value)


_replaced: weakref.WeakKeyDictionary[nn.Module, Replaced] = weakref.WeakKeyDictionary()


def _follow(swap: Swap, current: nn.Module) -> None:
    """Do to a module what was done meanwhile to the one in its place: mode, device, dtype."""
    if swap.original.training != current.training:
        swap.original.train(current.training)
    if (kind := _kind(current)) is not None and kind != swap.kind:
        swap.original.to(*kind)


def _kind(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    layer = module.computed_by if isinstance(module, StandIn) else module
    # The last parameter is a bias where there is one, and those keep the model's type when rows are halved.
    like = next((p for p in reversed(list(layer.parameters())) if p.is_floating_point()), None)
    return None if like is None else (like.device, like.dtype)


def _check(model: nn.Module, name: str, placement: Placement) -> None:
    for path in (*placement.entry, *placement.passed, *placement.exit):
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise FFFError(
                f"block {name}: the model has no module {path!r}; the plan belongs to another model"
            ) from None
        if not path or isinstance(module, StandIn):
            raise FFFError(f"block {name} is already replaced; restore the model first")
    if len({id(model.get_submodule(path)) for path in placement.entry}) != 1:
        raise FFFError(f"block {name}: {', '.join(placement.entry)} are not one shared module in this model")


def _install(model: nn.Module, placement: Placement, layer: nn.Module, record: Replaced) -> None:
    original = model.get_submodule(placement.entry[0])
    like = next((p for p in original.parameters() if p.is_floating_point()), None)
    if like is not None:
        layer = layer.to(dtype=like.dtype) if like.is_meta else layer.to(like.device, like.dtype)
    layer.train(original.training)
    if placement.position is Position.MODULE:
        layer.__dict__["replaced_weight"] = _a_weight(original)  # on a module of any kind
        _put(model, placement.entry, layer, record)
        return
    _keep_fused_path_away(model, placement, record)
    handover = Handover() if placement.position is Position.HANDOVER else None
    last = LastProjection(layer, placement, handover)
    last.replaced_weight = _a_weight(model.get_submodule(placement.exit[0]))
    _put(model, placement.entry, FirstProjection(layer, placement, handover), record)
    groups: dict[int, list[str]] = {}
    for path in placement.passed:
        groups.setdefault(id(model.get_submodule(path)), []).append(path)
    for paths in groups.values():
        _put(model, tuple(paths), Bypassed(layer, placement, handover), record)
    _put(model, placement.exit, last, record)


def _a_weight(module: nn.Module) -> str | None:
    """Name of a weight of a module: of its last matrix, which of a whole block is the down-projection's."""
    matrices = [name for name, parameter in module.named_parameters() if parameter.dim() > 1]
    return matrices[-1] if matrices else None


def _put(model: nn.Module, paths: tuple[str, ...], module: nn.Module, record: Replaced) -> None:
    module.training = model.get_submodule(paths[0]).training
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        original = getattr(owner, name)
        if original is not module:  # an alias whose parent is shared too was replaced with the first
            record.swaps.append(Swap(owner, name, original, _kind(module)))
            setattr(owner, name, module)


def _keep_fused_path_away(model: nn.Module, placement: Placement, record: Replaced) -> None:
    """The encoder of torch itself has a fused path that calls no module."""
    for module in _ancestors(model, placement.entry[0]):
        if isinstance(module, nn.TransformerEncoder) and module.enable_nested_tensor:
            record.settings.append((module, "enable_nested_tensor", True))
            record.settings.append((module, "use_nested_tensor", module.use_nested_tensor))
            module.enable_nested_tensor = module.use_nested_tensor = False


def _ancestors(model: nn.Module, path: str) -> Iterator[nn.Module]:
    yield model
    for part in path.split(".")[:-1]:
        model = model.get_submodule(part)
        yield model
