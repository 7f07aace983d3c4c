"""The models in torch that take part, made inside the process that measures them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fffconvert import hub, surgery
from fffconvert.benchmarks.model.inputs import Arrays
from fffconvert.benchmarks.model.parts import part_times
from fffconvert.deployment import deploy
from fffconvert.deployment.memory import weight_bytes
from fffconvert.deployment.outputs import MainOutput
from fffconvert.errors import FFFError
from fffconvert.estimation.models import built_with_weights
from fffconvert.hub.source import resolve
from fffconvert.location import locate
from fffconvert.planning import FFFSpec
from fffconvert.planning.selection import known_activation
from fffconvert.runtime import Inference
from fffconvert.tree import FFFLayer

Settings = Mapping[str, Any]
CONFIG = "config.json"


class TorchModel:
    """A model in torch, called with arrays as the other runtimes are.

    Args:
        kind: A key of `KINDS`.
        settings: Those of the benchmark, as plain values.
        names: The model's inputs.
    """

    def __init__(self, kind: str, settings: Settings, names: list[str]) -> None:
        torch.manual_seed(0)
        self.model = KINDS[kind](settings)
        if getattr(self.model.config, "use_cache", None) is not None:
            self.model.config.use_cache = False
        self._call: Callable[..., Tensor] = MainOutput(self.model, names).eval()
        if kind == "compile":
            # Weights do not change: freezing them is torch's advice for CPUs.
            self._call = torch.compile(self._call, dynamic=False, options={"freezing": True})

    def call(self, arrays: Arrays) -> np.ndarray:
        """One forward pass."""
        with torch.inference_mode():
            return self._call(*map(torch.from_numpy, arrays.values())).numpy()

    def generate(self, arrays: Arrays, tokens: int) -> list[int]:
        """Nanoseconds that each of `tokens` greedy steps takes, after the prompt was read."""
        step = torch.from_numpy(arrays["input_ids"])
        times, past = [], None
        with torch.inference_mode():
            for _ in range(tokens + 1):
                started = perf_counter_ns()
                output = self.model(input_ids=step, past_key_values=past, use_cache=True)
                past, step = output.past_key_values, output.logits[:, -1:].argmax(-1)
                times.append(perf_counter_ns() - started)
        return times[1:]

    def parts(self, arrays: Arrays, calls: int) -> dict[str, float]:
        """Milliseconds of one forward pass, by part of the model."""
        return part_times(self.model, lambda: self.call(arrays), calls)

    def weights_mb(self) -> float:
        """What the weights take, in the form in which they are computed."""
        return weight_bytes(self.model) / 1e6


def original_name(settings: Settings) -> str:
    """The dense model to compare with.

    Raises:
        FFFError: It is not known.
    """
    if settings["original"] is not None:
        return str(settings["original"])
    if settings["depth"] is not None:
        return str(settings["model"])
    base = stored_config(settings["model"]).get("base_model")
    if base is None:
        raise FFFError(f"{settings['model']} does not say what it was converted from; add `original=MODEL`")
    return str(base)


def stored_config(name: str) -> dict[str, Any]:
    """What a converted folder's config says of its FFF layers.

    Raises:
        FFFError: It is no converted folder.
    """
    folder = resolve(name).folder
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if folder else {}
    stored = config.get("quantization_config") or {}
    if stored.get("quant_method") != "fff":
        raise FFFError(
            f"{name} is not converted; give a converted folder, or `depth` to measure it with random trees"
        )
    return dict(stored)


def dense(settings: Settings) -> nn.Module:
    """The original."""
    name = original_name(settings)
    if settings["depth"] is not None:
        return built_with_weights(name).eval()
    return _loaded(name, settings).float()


def _loaded(name: str, settings: Settings, **options: Any) -> nn.Module:
    model: nn.Module = hub.load(name, trust_remote_code=settings["trust_remote_code"], **options).model
    return model


def _ablated(settings: Settings) -> nn.Module:
    """The original without its feedforward blocks: what no conversion can be faster than."""
    model = dense(settings)
    surgery.replace(model, {site: nn.Identity() for site in locate(model)})
    return model


def trees(settings: Settings) -> nn.Module:
    """The converted model, not deployed."""
    if settings["depth"] is None:
        return _loaded(settings["model"], settings, deployed=False).float()
    model = dense(settings)
    layers = {}
    for site in locate(model):
        spec = FFFSpec(
            site.d_model,
            site.d_model,
            settings["depth"],
            settings["trees"],
            activation=known_activation(site.activation, site.name),
            feature_axis=site.placement.feature_axis,
        )
        layers[site] = FFFLayer(spec)
    surgery.replace(model, layers)
    return model


def _reference(settings: Settings) -> nn.Module:
    """The converted model in plain torch, from its weights as stored: what the others' outputs should be."""
    model = trees(settings)
    for layer in _layers(model):
        layer.inference = Inference("reference")
    return model


def _float32(settings: Settings) -> nn.Module:
    return deploy(trees(settings), dtype="float32", originals={})


def _int8(settings: Settings) -> nn.Module:
    return deploy(trees(settings), originals={}, quantize_linear="int8")


def _deployed(settings: Settings) -> nn.Module:
    return _loaded(settings["model"], settings)


def _layers(model: nn.Module) -> Iterator[FFFLayer]:
    return (module for module in model.modules() if isinstance(module, FFFLayer))


KINDS: dict[str, Callable[[Settings], Any]] = {
    "torch": dense,
    "compile": dense,
    "ablated": _ablated,
    "reference": _reference,
    "undeployed": trees,
    "fffconvert": _float32,
    "fffconvert-int8": _int8,
    "deployed": _deployed,
}
