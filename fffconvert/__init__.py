"""Replace the feedforward blocks of pretrained transformers by fast feedforward (FFF) trees.

Importing this package imports neither torch nor transformers, so that the command line answers at once. It
teaches transformers, whenever that is imported, to read converted models.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from fffconvert.conversion import convert, restore
    from fffconvert.deployment import deploy
    from fffconvert.distillation import distill
    from fffconvert.errors import FFFError
    from fffconvert.estimation import estimate
    from fffconvert.evaluation import evaluate
    from fffconvert.hub import load
    from fffconvert.location import FFNSite, locate
    from fffconvert.native import register_onnxruntime
    from fffconvert.planning import FFFSpec
    from fffconvert.reporting import report
    from fffconvert.surgery import replace
    from fffconvert.tree import FFFLayer

__version__ = "0.1.0"
__all__ = [
    "FFFError",
    "FFFLayer",
    "FFFSpec",
    "FFNSite",
    "convert",
    "deploy",
    "distill",
    "estimate",
    "evaluate",
    "load",
    "locate",
    "register_onnxruntime",
    "replace",
    "report",
    "restore",
]

_HOMES = {
    "FFFError": "fffconvert.errors",
    "FFFLayer": "fffconvert.tree",
    "FFFSpec": "fffconvert.planning",
    "FFNSite": "fffconvert.location",
    "convert": "fffconvert.conversion",
    "deploy": "fffconvert.deployment",
    "distill": "fffconvert.distillation",
    "estimate": "fffconvert.estimation",
    "evaluate": "fffconvert.evaluation",
    "load": "fffconvert.hub",
    "locate": "fffconvert.location",
    "register_onnxruntime": "fffconvert.native",
    "replace": "fffconvert.surgery",
    "report": "fffconvert.reporting",
    "restore": "fffconvert.conversion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_quantizer(_: ModuleType) -> None:
    import_module("fffconvert.hub.quantizer")


def _teach_modeling(module: ModuleType) -> None:
    import_module("fffconvert.hub.hooks").teach(module)


wrapt.register_post_import_hook(_register_quantizer, "transformers.quantizers.auto")
wrapt.register_post_import_hook(_teach_modeling, "transformers.modeling_utils")
