"""Reads a pretrained model, its head and its tokenizer, and refuses what would silently be wrong."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from fffconvert.errors import FFFError, first_line
from fffconvert.hub.source import FORMS, WEIGHTS, Source, resolve
from fffconvert.private_names import build_from_config

_UNREADABLE = (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What transformers raises for a malformed config or file, besides its own checks."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class Loaded:
    """A model in memory, in eval mode.

    Attributes:
        model: An instance of the class that its config names, or of the one without a head.
        tokenizer: None where there is none, as for models of images and speech.
        source: Where it was read from.
    """

    model: PreTrainedModel
    tokenizer: Any | None
    source: Source


def load(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, deployed: bool = True
) -> Loaded:
    """Read a pretrained or converted model with its weights.

    Weights keep the dtype they are stored in; those of a GGUF file are unpacked to float32. A checkpoint that
    lacks weights of its head alone is read without, with a warning.

    Args:
        name: Hub id, folder, GGUF file or `pkg:DIST[/PATH]`.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run the code that the repository brings along.
        deployed: Have a deployed folder compute as it was deployed; otherwise from the weights as stored.

    Raises:
        FFFError: There is no such model, or its weights are damaged, incomplete, quantised, or NaN.
    """
    source = resolve(name, revision)
    if source.folder is not None and source.gguf_file is None:
        _check_files(source)
    with _one_line(name):
        config = read_config(source, trust_remote_code)
        if not deployed:
            config.quantization_config.pop("deployment", None)
        cls, options = _model_class(config, source, trust_remote_code)
        if source.gguf_file is not None:
            options |= _unpacked(source.gguf_file)
        model, info = _read(cls, config, source, options)
        body = _body_class(model) if _missing(info) else None
        if body is not None:
            found, own = _read(body, config, source, options)
            if not _missing(own):
                warnings.warn(
                    f"{name} lacks {len(_missing(info))} weights of the head of {type(model).__name__}, "
                    f"which its config names; it is loaded without, as {body.__name__}",
                    stacklevel=2,
                )
                model, info = found, own
    _check_weights(name, model, info)
    return Loaded(model.eval(), _tokenizer(source, config, trust_remote_code), source)


def _read(
    cls: type[Any], config: PreTrainedConfig, source: Source, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of a class, and what transformers says of its weights."""
    model, info = cls.from_pretrained(
        source.location,
        config=copy.deepcopy(config),
        revision=source.revision or "main",
        weights_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    return model, info


def _body_class(model: PreTrainedModel) -> type[Any] | None:
    """The class of a model without its head; None for one that has none."""
    body = model.base_model
    return type(body) if isinstance(body, PreTrainedModel) and body is not model else None


def _missing(info: Mapping[str, Any]) -> list[str]:
    """Weights that a checkpoint lacks, but those of poolers: most models are used without."""
    return sorted(key for key in info["missing_keys"] if "pooler" not in key.split("."))


def load_random(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, device: str = "cpu"
) -> Loaded:
    """Build a model from its config alone, with random float32 weights.

    Args:
        name: As for `load`, but the folder needs no weights.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run the code that the repository brings along.
        device: Where to build it; on "meta" it has shapes and no weights.

    Raises:
        FFFError: There is no such model, or transformers cannot build it.
    """
    source = resolve(name, revision)
    with _one_line(name):
        config = read_config(source, trust_remote_code)
        cls, options = _model_class(config, source, trust_remote_code)
        with torch.device(device):
            model = build_from_config(cls, config, dtype=torch.float32, **options)
    return Loaded(model.eval(), None, source)


def check_converted(name: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Refuse a model that was not converted by what its config says, before any weights are read.

    Args:
        name: As for `load`.
        trust_remote_code: Run the code that the repository brings along.

    Returns:
        What its config says of the FFF layers.

    Raises:
        FFFError: There is no such model, or it holds no FFF layer.
    """
    with _one_line(name):
        config = read_config(resolve(name), trust_remote_code)
    stored = getattr(config, "quantization_config", None) or {}
    if stored.get("quant_method") != "fff":
        raise FFFError(f"{name} holds no FFF layer; convert it first: fffconvert convert {name} -o OUTPUT")
    return dict(stored)


def read_config(source: Source, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's config.

    One without a `model_type` goes by the class it names, or else, as transformers did before version 5, by
    the longest model type that its folder's name contains.
    """
    place: dict[str, Any] = {"revision": source.revision or "main"}
    if source.gguf_file is not None:
        return AutoConfig.from_pretrained(source.location, gguf_file=source.gguf_file, **place)
    values, _ = PreTrainedConfig.get_config_dict(source.location, **place)
    if "model_type" not in values:
        for architecture in values.get("architectures") or ():
            if (cls := _transformers_class(architecture)) is not None:
                return cls.config_class.from_pretrained(source.location, **place)
        folder = os.path.basename(source.location)
        for model_type in sorted(CONFIG_MAPPING, key=len, reverse=True):
            if model_type in folder:
                return CONFIG_MAPPING[model_type].from_pretrained(source.location, **place)
    if not trust_remote_code and values.get("model_type") not in CONFIG_MAPPING and "auto_map" in values:
        raise FFFError(
            f"{source.name} brings its own code; read it, and trust it with `trust_remote_code=True`"
        )
    return AutoConfig.from_pretrained(source.location, trust_remote_code=trust_remote_code, **place)


def _model_class(
    config: PreTrainedConfig, source: Source, trust_remote_code: bool
) -> tuple[type[Any], dict[str, Any]]:
    """The class that keeps the checkpoint's head, and the options it needs."""
    method = (getattr(config, "quantization_config", None) or {"quant_method": "fff"}).get("quant_method")
    if method != "fff":
        raise FFFError(f"{source.name} is quantised ({method}); give the model in floating point")
    architectures = getattr(config, "architectures", None) or ()
    for auto, reference in getattr(config, "auto_map", {}).items() if trust_remote_code else ():
        if auto.startswith("AutoModel") and reference.split(".")[-1] in architectures:
            return getattr(transformers, auto), {"trust_remote_code": True}
    for architecture in architectures:
        if (cls := _transformers_class(architecture)) is not None:
            return cls, {}
    if source.gguf_file is not None and type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM, {}
    if source.weights and type(config) in transformers.MODEL_MAPPING:
        return _class_of_weights(config, source), {}
    return transformers.AutoModel, {"trust_remote_code": trust_remote_code}


def _class_of_weights(config: PreTrainedConfig, source: Source) -> type[Any]:
    """Of the classes with this config, the one whose weights have the names that are stored."""
    stored: set[str] = set()
    for file in source.weights:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                stored.update(opened.keys())
        else:
            stored.update(torch.load(file, map_location="meta", weights_only=True))
    mappings = [value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING")]
    classes = [mapping[type(config)] for mapping in mappings if type(config) in mapping]

    decoder = getattr(config, "is_decoder", False)
    language_models = (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING if decoder else transformers.MODEL_FOR_MASKED_LM_MAPPING
    )

    def agreement(cls: type[Any]) -> tuple[int, bool]:
        with torch.device("meta"):
            names = set(cls(config).state_dict())
        return len(names & stored) - len(names - stored), cls is language_models.get(type(config), None)

    return max((cls for cls in classes if isinstance(cls, type)), key=agreement)


def _transformers_class(name: str) -> Any | None:
    cls = getattr(transformers, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, PreTrainedModel) else None


def _unpacked(gguf_file: str) -> dict[str, Any]:
    """Options with which transformers reads a GGUF file into plain float32 weights."""
    if not hasattr(transformers, "GgufConfig"):
        raise FFFError(f"reading {gguf_file} needs a newer transformers: pip install -U transformers")
    unpack = transformers.GgufConfig(dequantize=True)
    return {"gguf_file": gguf_file, "dtype": torch.float32, "quantization_config": unpack}


def _check_files(source: Source) -> None:
    if not source.weights:
        raise FFFError(
            f"folder {source.name} holds a config but no weights; expected {' or '.join(WEIGHTS)}; "
            "copy the weights there, or name another model"
        )
    for file in source.weights:
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise FFFError(
                f"{file.name} in {source.name} is cut off or damaged ({error}); copy it again"
            ) from None


def _check_weights(name: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse weights that do not fit, are missing or not finite."""
    for key, stored, expected in info["mismatched_keys"]:
        raise FFFError(
            f"the weights of {name} do not fit its config: {key} has shape {list(stored)}, "
            f"expected {list(expected)}; use the config that belongs to the weights"
        )
    missing = _missing(info)
    if len(missing) < len(info["missing_keys"]):
        warnings.warn(f"{name} holds no pooler; {type(model).__name__} got a random one", stacklevel=3)
    if missing:
        raise FFFError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, {missing[0]} the first; "
            "complete the checkpoint, or correct architectures in its config.json"
        )
    for key, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FFFError(f"weight {key} of {name} is NaN or infinite; get an undamaged checkpoint")


def _tokenizer(source: Source, config: PreTrainedConfig, trust_remote_code: bool) -> Any | None:
    """The model's tokenizer; None if it has no files (of which transformers would make an empty one)."""
    revision = source.revision or "main"
    options: dict[str, Any] = {"config": config, "revision": revision, "trust_remote_code": trust_remote_code}
    if source.gguf_file is not None:
        options["gguf_file"] = source.gguf_file
    elif not any(_has(source, file, revision) for file in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source.location, **options)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        warnings.warn(
            f"{source.name} goes on without its tokenizer: {first_line(error).rstrip('.')}", stacklevel=3
        )
        return None


def _has(source: Source, file: str, revision: str) -> bool:
    found = cached_file(source.location, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return found is not None


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what transformers raises for an unreadable model into one line."""
    try:
        yield
    except FFFError:
        raise
    except pickle.UnpicklingError as error:
        raise FFFError(f"the weights of {name} hold code, not only tensors; use safetensors") from error
    except _UNREADABLE as error:
        raise FFFError(f"cannot read model {name}: {first_line(error).rstrip('.')}; {FORMS}") from error
