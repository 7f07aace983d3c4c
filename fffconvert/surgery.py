"""Put layers in the place of located blocks, check that the places are right, and take the layers out again.

Modules are swapped and forwards are kept, so a converted model is still of its own class. All checks come
first, mutation last.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.errors import FFFError, first_line
from fffconvert.locate import FFNSite, Placement, Position, Sites, Skipped
from fffconvert.locate.capture import evaluation, tensors_in

VERIFY_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error, relative to the largest output, that rounding explains when a block is computed anew."""


def replace(model: nn.Module, layers: Mapping[FFNSite, nn.Module]) -> None:
    """Put a module in the place of each located block. `restore` puts the originals back.

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


def original(model: nn.Module, layer: nn.Module) -> nn.Module | None:
    """The block whose place a layer took, as a module; None if this process did not replace it."""
    record = _replaced.get(model, Replaced())
    return next((site.dense() for placed, site in record.layers if placed is layer), None)


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


def restore(model: nn.Module) -> None:
    """Put back the blocks that `replace` took out of this very model.

    Raises:
        FFFError: The model holds no originals: nothing was replaced, or it is a copy or was loaded.
    """
    record = _replaced.pop(model, None)
    if record is None or not record.swaps:
        raise FFFError(
            "this model holds no original blocks: it is a copy, or was loaded converted; load the original"
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


@dataclass
class Replaced:
    """What was taken out of a model, and the layers that stand there now."""

    swaps: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    settings: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    layers: list[tuple[nn.Module, FFNSite]] = field(default_factory=list)

    def undo(self) -> None:
        """Put everything back."""
        for parent, name, original in reversed(self.swaps):
            setattr(parent, name, original)
        for owner, name, value in reversed(self.settings):
            setattr(owner, name, value)


_replaced: weakref.WeakKeyDictionary[nn.Module, Replaced] = weakref.WeakKeyDictionary()


def _check(model: nn.Module, name: str, placement: Placement) -> None:
    for path in (*placement.entry, *placement.passed, *placement.exit):
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise FFFError(
                f"block {name}: the model has no module {path!r}; the plan belongs to another model"
            ) from None
        if not path or isinstance(module, (FirstProjection, PassedOver, LastProjection)):
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
        _put(model, placement.entry, layer, record)
        return
    _keep_fused_path_away(model, placement, record)
    slot = _Slot() if placement.position is Position.HANDOVER else None
    _put(model, placement.entry, FirstProjection(layer, slot, placement), record)
    groups: dict[int, list[str]] = {}
    for path in placement.passed:
        groups.setdefault(id(model.get_submodule(path)), []).append(path)
    for paths in groups.values():
        _put(model, tuple(paths), PassedOver(layer, slot is not None, placement), record)
    _put(model, placement.exit, LastProjection(layer, slot), record)


def _put(model: nn.Module, paths: tuple[str, ...], module: nn.Module, record: Replaced) -> None:
    module.training = model.get_submodule(paths[0]).training
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        original = getattr(owner, name)
        if original is not module:  # an alias whose parent is shared too was replaced with the first
            record.swaps.append((owner, name, original))
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


class _Slot:
    """Carries a block's result from the place of its first projection to that of its last."""

    def __init__(self) -> None:
        self.result: Tensor | None = None


class _StandIn(nn.Module):
    """Takes a projection's place, and answers what surrounding code asks of a projection."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._answers = (layer,)  # in a tuple, so that its parameters are registered only once
        self.register_forward_pre_hook(_nothing)

    @property
    def weight(self) -> Tensor | None:
        """A parameter of the layer: code that asks wants its dtype or device."""
        return next(self._answers[0].parameters(), None)

    @property
    def bias(self) -> None:
        """No bias."""


def _nothing(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Keeps the fused path of `nn.TransformerEncoderLayer` away, which modules with hooks disable."""


class FirstProjection(_StandIn):
    """In the place of the first up-projection: computes the whole block."""

    def __init__(self, layer: nn.Module, slot: _Slot | None, placement: Placement) -> None:
        super().__init__(layer)
        self.layer = layer
        self._slot = slot
        self._placement = placement

    def forward(self, x: Tensor) -> Tensor:
        """Give the block's result, or keep it for the last projection and give a tensor of no content."""
        result: Tensor = self.layer(x)
        if self._slot is None:
            return result
        self._slot.result = result
        return _without_content(x, self._placement)


class PassedOver(_StandIn):
    """In the place of an activation, or of a further up-projection."""

    def __init__(self, layer: nn.Module, handover: bool, placement: Placement) -> None:
        super().__init__(layer)
        self._handover = handover
        self._placement = placement

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Give the input, or a tensor of no content where the block's result is kept elsewhere."""
        return _without_content(x, self._placement) if self._handover else x


def _without_content(x: Tensor, placement: Placement) -> Tensor:
    shape = list(x.shape)
    shape[placement.feature_axis] = placement.width
    return x.new_zeros(shape)


class LastProjection(_StandIn):
    """In the place of the down-projection."""

    def __init__(self, layer: nn.Module, slot: _Slot | None) -> None:
        super().__init__(layer)
        self._slot = slot

    def forward(self, x: Tensor) -> Tensor:
        """Give the block's result."""
        if self._slot is None:
            return x
        result, self._slot.result = self._slot.result, None
        if result is None:
            raise RuntimeError("the block's last projection was called before its first")
        return result
