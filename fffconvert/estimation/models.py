"""Models to estimate, without weights: by name from the list, from a config, or as they are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch import nn

from fffconvert import hub
from fffconvert.errors import FFFError
from fffconvert.estimation.anatomy import Anatomy
from fffconvert.estimation.recording import record
from fffconvert.location.inputs import Inputs
from fffconvert.records import read

LARGE = 2_000_000_000
"""Parameters of the largest model that is run with random weights."""
SMALL = 400_000_000
"""Parameters up to which a model that does not run on the meta device is built with random weights."""


@dataclass(frozen=True)
class Preset:
    """A model of the list.

    Attributes:
        name: What it is called.
        architecture: The transformers class.
        config: The values of its config that differ from the class's defaults.
        parameters: The published number of parameters.
        source: Where shape and number were published.
        ids: Checkpoints of this shape on the hub.
    """

    name: str
    architecture: str
    config: Mapping[str, Any]
    parameters: int
    source: str
    ids: tuple[str, ...] = ()

    def build(self, device: str = "meta") -> nn.Module:
        """The model with random weights; on the meta device, shapes without weights."""
        cls = getattr(transformers, self.architecture)
        with torch.device(device):
            model: nn.Module = cls(cls.config_class(**self.config))
        return model.eval()


@cache
def presets() -> dict[str, Preset]:
    """The models that are known by name."""
    listed = yaml.safe_load(
        files("fffconvert.estimation").joinpath("models.yaml").read_text(encoding="utf-8")
    )
    return {name: read(Preset, {"name": name, **values}, name) for name, values in listed.items()}


@cache
def _by_id() -> dict[str, Preset]:
    """The models by their ids on the hub in lower case, with the organisation and without."""
    named = [(identifier.lower(), known) for known in presets().values() for identifier in known.ids]
    return {key: known for full, known in named for key in (full, full.partition("/")[2])}


def preset(name: str, revision: str | None = None) -> Preset | None:
    """The model of that name or hub id in the list, however it is spelt.

    None if there is none, if a file or folder here has that name, or if a revision is asked for, which only
    the hub knows.
    """
    if revision is not None or Path(name).exists():
        return None
    return presets().get(name.lower().replace("_", "-")) or _by_id().get(name.lower())


@cache
def _anatomy(name: str) -> Anatomy:
    return record(presets()[name].build())


def anatomy_of(
    model: str | nn.Module,
    *,
    example_inputs: Inputs | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Anatomy:
    """The formulas of a model.

    Args:
        model: A name of the list, hub id, folder, config.json, GGUF file, `pkg:DIST[/PATH]`, or a module.
        example_inputs: What one forward pass of a module takes, where it cannot be guessed.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run the code that the repository brings along.

    Raises:
        FFFError: There is no such model, it does not run, is already converted, or has no feedforward block.
    """
    if isinstance(model, nn.Module):
        _check_dense(getattr(model, "config", None), type(model).__name__)
        return record(model, example_inputs)
    known = preset(model, revision)
    if known is not None:
        return _anatomy(known.name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = hub.load_random(model, device="meta", **options).model
    except FFFError as error:
        raise FFFError(f"{error}; or a name of fffconvert estimate --list") from None
    _check_dense(built.config, model)
    try:
        return record(built)
    except FFFError:
        parameters = sum(parameter.numel() for parameter in built.parameters())
        if parameters > SMALL:
            raise
        return record(hub.load_random(model, **options).model)


def built_with_weights(name: str) -> nn.Module:
    """A model by name on the CPU, with random weights, in eval mode.

    Raises:
        FFFError: There is no such model, or it is too large to run here.
    """
    known = preset(name)
    if known is None:
        model: nn.Module = hub.load_random(name).model
        return model
    if known.parameters > LARGE:
        raise FFFError(
            f"{name} has {known.parameters:,} parameters; at most {LARGE:,} are run here to compare"
        )
    return known.build("cpu")


def _check_dense(config: Any, name: str) -> None:
    stored = getattr(config, "quantization_config", None)
    method = getattr(stored, "quant_method", None) or (stored or {}).get("quant_method")
    if method is not None:
        raise FFFError(f"{name} is already converted or quantised ({method}); give the original model")
