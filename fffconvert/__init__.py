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
    from fffconvert.benchmarks import bench, bench_layer
    from fffconvert.conversion import activations, convert, restore
    from fffconvert.deployment import deploy, export
    from fffconvert.distillation import Recipe, distill
    from fffconvert.errors import FFFError
    from fffconvert.estimation import estimate
    from fffconvert.evaluation import evaluate, sweep
    from fffconvert.hub import load
    from fffconvert.location import FFNSite, Sites, locate
    from fffconvert.native import register_onnxruntime
    from fffconvert.options import TextSource
    from fffconvert.planning import FFFSpec, Plan
    from fffconvert.planning.search import plan
    from fffconvert.reporting import report
    from fffconvert.surgery import layers_of, replace
    from fffconvert.tree import FFFLayer

__version__ = "0.1.0"

_HOMES = {
    "FFFError": "errors",
    "FFFLayer": "tree",
    "FFFSpec": "planning",
    "FFNSite": "location",
    "Plan": "planning",
    "Recipe": "distillation",
    "Sites": "location",
    "TextSource": "options",
    "activations": "conversion",
    "bench": "benchmarks",
    "bench_layer": "benchmarks",
    "convert": "conversion",
    "deploy": "deployment",
    "distill": "distillation",
    "estimate": "estimation",
    "evaluate": "evaluation",
    "export": "deployment",
    "layers_of": "surgery",
    "load": "hub",
    "locate": "location",
    "plan": "planning.search",
    "register_onnxruntime": "native",
    "replace": "surgery",
    "report": "reporting",
    "restore": "conversion",
    "sweep": "evaluation",
}
__all__ = [
    "FFFError",
    "FFFLayer",
    "FFFSpec",
    "FFNSite",
    "Plan",
    "Recipe",
    "Sites",
    "TextSource",
    "activations",
    "bench",
    "bench_layer",
    "convert",
    "deploy",
    "distill",
    "estimate",
    "evaluate",
    "export",
    "layers_of",
    "load",
    "locate",
    "plan",
    "register_onnxruntime",
    "replace",
    "report",
    "restore",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
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
