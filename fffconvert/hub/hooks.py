"""What transformers is taught as soon as its models are imported.

That may be in the middle of an import of our own, so nothing of ours is imported here before it is called.
Where the modules of the package are imported again, as notebooks do, each copy serves layers of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt

BFLOAT16_ATTENTION = "fff_bfloat16"
"""Name under which transformers knows `fffconvert.hub.attention.bfloat16_attention`."""


def teach(modeling_utils: ModuleType) -> None:
    """Have models saved with what their FFF layers need, and make our attention known.

    A process that unpickles a whole model needs both, and has loaded nothing of it through us.

    Args:
        modeling_utils: `transformers.modeling_utils`.
    """
    wrapt.wrap_function_wrapper(modeling_utils, "PreTrainedModel.save_pretrained", _save_pretrained)
    modeling_utils.AttentionInterface.register(BFLOAT16_ATTENTION, _bfloat16_attention)
    masking = import_module("transformers.masking_utils")
    masking.AttentionMaskInterface.register(BFLOAT16_ATTENTION, masking.sdpa_mask)


save_with_layers: Callable[..., Any] | None = None
"""`fffconvert.hub.saving.save_with_layers` of this copy of the package, once that module is imported."""


def _save_pretrained(save: Callable[..., None], model: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    if save_with_layers is None:
        import_module("fffconvert.hub.saving")
    return (save_with_layers or _plainly)(save, model, args, kwargs)


def _plainly(save: Callable[..., None], model: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    """For a copy that made no layers before another took its place."""
    return save(*args, **kwargs)


def _bfloat16_attention(*args: Any, **kwargs: Any) -> Any:
    return import_module("fffconvert.hub.attention").bfloat16_attention(*args, **kwargs)
