"""Results on disk, by the content that they depend on, so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

FORM = 1
"""Counted up when the same content gives other results in a new release."""


def digest(*parts: Any) -> str:
    """A name for plain values and this form of results."""
    return hashlib.sha256(json.dumps([FORM, *parts], sort_keys=True, default=str).encode()).hexdigest()[:32]


def fingerprint(model: nn.Module) -> str:
    """A name for a model's config and weights."""
    state = hashlib.sha256()
    config = getattr(model, "config", None)
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else {}
    # These say where the model came from, not what it computes.
    for name in ("_name_or_path", "transformers_version", "dtype"):
        values.pop(name, None)
    state.update(json.dumps([type(model).__name__, values], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        state.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return state.hexdigest()[:32]


def default_folder() -> Path:
    """Where results are kept unless another folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fffconvert" / "evaluations"


class Store:
    """Measured results.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was measured under a key before, or is measured now."""
        path = self.folder / f"{key}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        result = measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(result), encoding="utf-8")
        partial.replace(path)
        return result
