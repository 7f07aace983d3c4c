"""The models and runtimes to measure, made inside the process that measures them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from fffconvert import hub, surgery
from fffconvert.bench.model.inputs import Arrays
from fffconvert.deploy import deploy
from fffconvert.deploy.export import MainOutput, export_onnx
from fffconvert.errors import FFFError
from fffconvert.estimate.models import built_with_weights
from fffconvert.hub.source import resolve
from fffconvert.locate import locate
from fffconvert.plan import FFFSpec
from fffconvert.runtime import Inference
from fffconvert.tree import FFFLayer

Call = Callable[[Arrays], np.ndarray]


class TorchModel:
    """A model in torch, called with arrays as the other runtimes are.

    Attributes:
        model: The model.
        call: One forward pass; all of it is timed.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any]) -> None:
        torch.manual_seed(0)
        self.model = _MODELS[kind](settings)
        if hasattr(self.model.config, "use_cache"):
            self.model.config.use_cache = False
        self._module: Callable[..., torch.Tensor] = MainOutput(self.model).eval()
        if kind == "compile":
            torch._inductor.config.freezing = True
            self._module = torch.compile(self._module, dynamic=False)

    def call(self, arrays: Arrays) -> np.ndarray:
        """One forward pass."""
        with torch.inference_mode():
            y = self._module(**{name: torch.from_numpy(array) for name, array in arrays.items()})
            return y.numpy()

    def reference(self, arrays: Arrays) -> np.ndarray | None:
        """The same from the weights as they are stored, in plain torch; None without FFF layers."""
        return self._reference.get(arrays) if False else None


def dense_model(settings: Mapping[str, Any]) -> PreTrainedModel:
    """The model without trees."""
    name = original_name(settings)
    if settings["depth"] is not None:
        model = built_with_weights(name)
        assert isinstance(model, PreTrainedModel), "only transformers models have names"
        return model.eval()
    return hub.load(name, trust_remote_code=settings["trust_remote_code"]).model.float()
