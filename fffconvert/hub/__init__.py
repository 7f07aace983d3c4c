"""Models on disk and on the hub: where they come from, how converted ones are written and read back.

The names below are imported on first use: `hub.quantizer` is loaded while transformers itself is, too early
for what the others need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fffconvert.hub.output import check_output, save
    from fffconvert.hub.pretrained import Loaded, check_converted, load, load_random
    from fffconvert.hub.quantizer import FFFConfig
    from fffconvert.hub.saving import mark_converted
    from fffconvert.hub.source import resolve

_HOMES = {
    "FFFConfig": "quantizer",
    "Loaded": "pretrained",
    "check_converted": "pretrained",
    "check_output": "output",
    "load": "pretrained",
    "load_random": "pretrained",
    "mark_converted": "saving",
    "resolve": "source",
    "save": "output",
}
__all__ = [
    "FFFConfig",
    "Loaded",
    "check_converted",
    "check_output",
    "load",
    "load_random",
    "mark_converted",
    "resolve",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
