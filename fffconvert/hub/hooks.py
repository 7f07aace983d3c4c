"""What transformers is taught as soon as its models are imported.

That may be in the middle of an import of our own, so nothing of ours is imported here before it is called.
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


def _save_pretrained(
    save: Callable[..., None], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return import_module("fffconvert.hub.saving").save_with_layers(save, model, args, kwargs)


def _bfloat16_attention(*args: Any, **kwargs: Any) -> Any:
    return import_module("fffconvert.hub.attention").bfloat16_attention(*args, **kwargs)
