"""Replace the feedforward blocks of pretrained transformers by fast feedforward (FFF) trees.

Importing this package imports neither torch nor transformers, so that the command line answers at once. It
teaches transformers, whenever that is imported, to read converted models.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from fffconvert.convert import convert, restore
    from fffconvert.deploy import deploy
    from fffconvert.distill import distill
    from fffconvert.errors import FFFError
    from fffconvert.estimate import estimate
    from fffconvert.evaluate import evaluate
    from fffconvert.hub import load
    from fffconvert.locate import FFNSite, locate
    from fffconvert.native import register_onnxruntime
    from fffconvert.plan import FFFSpec
    from fffconvert.report import report
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
    "FFFSpec": "fffconvert.plan",
    "FFNSite": "fffconvert.locate",
    "convert": "fffconvert.convert",
    "deploy": "fffconvert.deploy",
    "distill": "fffconvert.distill",
    "estimate": "fffconvert.estimate",
    "evaluate": "fffconvert.evaluate",
    "load": "fffconvert.hub",
    "locate": "fffconvert.locate",
    "register_onnxruntime": "fffconvert.native",
    "replace": "fffconvert.surgery",
    "report": "fffconvert.report",
    "restore": "fffconvert.convert",
}


class _Package(ModuleType):
    """Lets no submodule take the name of a public function: `locate`, `convert`, `estimate`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


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


sys.modules[__name__].__class__ = _Package
wrapt.register_post_import_hook(_register_quantizer, "transformers.quantizers.auto")
wrapt.register_post_import_hook(_teach_modeling, "transformers.modeling_utils")
