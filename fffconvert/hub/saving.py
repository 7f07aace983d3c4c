"""Has every model that holds FFF layers saved with what rebuilds them, whoever calls `save_pretrained`.

What is saved follows from the layers that stand in the model then: in the whole model that was converted, in
a part of it, in a model around it, or in one out of which an adapter was merged. transformers offers no place
to say so, so its `save_pretrained` is wrapped (`fffconvert.hub.hooks`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fffconvert.errors import FFFError
from fffconvert.hub import hooks
from fffconvert.hub.quantizer import FFFConfig
from fffconvert.hub.saved_plan import SavedLayer
from fffconvert.private_names import holds_adapter
from fffconvert.records import plain
from fffconvert.surgery import layers_of
from fffconvert.tree import FFFLayer

_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of module names that wrappers of torch put in, and that they take out of names in state dicts."""


def mark_converted(model: PreTrainedModel, base_model: str | None = None) -> None:
    """Note in a model's config which FFF layers stand in it; take an earlier note back if there are none.

    Other models may have been built from the same config, a teacher say: those are left alone.

    Args:
        model: Any model.
        base_model: Name of the model that was converted; by default what an earlier note says.

    Raises:
        FFFError: A module stands in a block's place that could not be rebuilt from a config.
    """
    modules = plain(plan_of(model))
    earlier = _noted(model)
    if not modules:
        if isinstance(getattr(model.config, "quantization_config", None), FFFConfig):
            _set_config(model, None)
        return
    note = FFFConfig(
        modules,
        base_model or (earlier.base_model if earlier else None),
        deployment=earlier.deployment if earlier else None,
    )
    current = getattr(model.config, "quantization_config", None)
    if current is None or current.to_dict() != note.to_dict():
        _set_config(model, note)


def plan_of(model: nn.Module) -> dict[str, SavedLayer]:
    """What a checkpoint of a model has to say of its FFF layers, by the names of their blocks.

    Layers of another copy of this package, imported before or after, are left to that copy.

    Raises:
        FFFError: A module stands in a block's place that could not be rebuilt from it.
    """
    for path, module in model.named_modules():
        standing = getattr(module, "computed_by", module)
        if getattr(module, "replaced_weight", None) is None or isinstance(standing, FFFLayer):
            continue
        if (type(standing).__module__, type(standing).__name__) != (FFFLayer.__module__, FFFLayer.__name__):
            raise FFFError(
                f"in the place of block {path} stands a {type(standing).__name__}, which from_pretrained "
                "could not rebuild; save such a model with torch.save, or restore the block"
            )
    plan = {}
    for name, placed in layers_of(model).items():
        if placed.replaced_weight is None:
            raise FFFError(
                f"the FFF layer {placed.path} was put in by hand, so that nothing tells which block it "
                "replaced; put it in with fffconvert.replace"
            )
        layer = SavedLayer(placed.placement, placed.layer.spec, placed.replaced_weight)
        plan[_unwrapped(name)] = layer.renamed(_unwrapped)
    return plan


def save_with_layers(
    save: Callable[..., None], model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """`save_pretrained`, with the FFF layers noted in the config and guards among the weights.

    A guard is a tensor of size zero under the name of a weight that the original block had: transformers
    without fffconvert finds a weight of the wrong shape and stops, where it would else go on with random
    blocks.
    """
    if holds_adapter(model):  # writes the adapter alone
        return save(*args, **kwargs)
    mark_converted(model)
    note = getattr(model.config, "quantization_config", None)
    if not isinstance(note, FFFConfig):
        return save(*args, **kwargs)
    call = inspect.signature(save).bind(*args, **kwargs)
    state: Mapping[str, torch.Tensor] | None = call.arguments.get("state_dict")
    guards = {layer["dense_weight"]: torch.empty(0, dtype=model.dtype) for layer in note.modules.values()}
    call.arguments["state_dict"] = {**(model.state_dict() if state is None else state), **guards}
    return save(*call.args, **call.kwargs)


hooks.save_with_layers = save_with_layers


def _noted(model: nn.Module) -> FFFConfig | None:
    """What the config of a model, or of one inside it, says of FFF layers."""
    configs = (getattr(module, "config", None) for module in model.modules())
    notes = (getattr(config, "quantization_config", None) for config in configs)
    return next((note for note in notes if isinstance(note, FFFConfig)), None)


def _set_config(model: PreTrainedModel, note: FFFConfig | None) -> None:
    shared = model.config
    own = copy.deepcopy(shared)
    if note is None:
        del own.quantization_config
    else:
        own.quantization_config = note
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def _unwrapped(path: str) -> str:
    for part in _WRAPPERS:
        path = path.replace(part, "")
    return path
