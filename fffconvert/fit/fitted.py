"""Fitted layers on disk while a conversion runs, so that a stopped one goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fffconvert.fit.diagnostics import Diagnostics
from fffconvert.planning import FFFSpec
from fffconvert.store import folder_of, written
from fffconvert.tree import FFFLayer


class Fitted:
    """The fitted layers of one conversion, by the names of their blocks.

    Args:
        key: Names all that the layers depend on, see `fffconvert.store.digest`.
    """

    def __init__(self, key: str) -> None:
        self.folder = folder_of("layers") / key

    def load(self, name: str, spec: FFFSpec) -> tuple[FFFLayer, Diagnostics] | None:
        """A block's layer and what was measured of it, if it was fitted before."""
        path = self._path(name)
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            found = json.loads(file.metadata()["diagnostics"])
            state = {key: file.get_tensor(key) for key in file.keys()}
        layer = FFFLayer(spec, dtype=torch.float32)
        layer.load_state_dict(state)
        return layer, Diagnostics(**{**found, "margins": tuple(found["margins"])})

    def save(self, name: str, layer: FFFLayer, found: Diagnostics) -> None:
        """Store a block's layer."""
        state = {key: tensor.detach().contiguous() for key, tensor in layer.state_dict().items()}
        with written(self._path(name)) as partial:
            save_file(state, partial, metadata={"diagnostics": json.dumps(dataclasses.asdict(found))})

    def clear(self) -> None:
        """Delete them: the conversion is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
