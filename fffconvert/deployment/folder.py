"""The command `fffconvert deploy`: choose, check what is left of the quality, write the folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fffconvert import hub
from fffconvert.deployment.agreement import Agreement, Outputs
from fffconvert.deployment.layers import LayerDeployment, deploy_layers, original_blocks
from fffconvert.deployment.linear import LinearDeployment, fast_attention, int8_linear_layers
from fffconvert.deployment.memory import weight_bytes
from fffconvert.errors import FFFError
from fffconvert.fit.corpus import read_texts
from fffconvert.hub.deployment import Deployment, apply
from fffconvert.hub.output import RECIPE, read_conversion, writing
from fffconvert.options import DeployOptions, verb
from fffconvert.records import plain
from fffconvert.runtime.heap import keep_freed_memory

RECORD = "deploy.json"
Model = TypeVar("Model", bound=nn.Module)


@verb(DeployOptions)
def deploy(model: Model | str | Path, options: DeployOptions) -> Model:
    """Make a converted model's layers compute as fast as they can here, in memory, or as a folder.

    It changes inference alone: parameters, training and what is saved stay as they are. Call the model under
    `torch.no_grad()` or `torch.inference_mode()`; while gradients are recorded, a deployment has no effect,
    and a warning says so. The process keeps freed memory from then on (see `fffconvert.runtime.heap`).

    Args:
        model: A converted model, or one layer, which is changed in place; or a converted folder.

    Returns:
        The model.

    Raises:
        FFFError: The model has no FFF layer, or the backend cannot run here; nothing is changed or written.
    """
    if isinstance(model, str | Path):
        found: Model = deploy_folder(str(model), options)[0]
        return found
    if options.output is not None:
        raise FFFError("`output` is for a model given by name: save this one, and deploy its folder")
    deploy_layers(model, options.backend, options.dtype, originals=options.originals)
    keep_freed_memory()
    if options.quantize_linear == "int8":
        int8_linear_layers(model, options.example_inputs)
        fast_attention(model)
    return model


@dataclass(frozen=True)
class Deployed:
    """What `deploy_folder` did.

    Attributes:
        layers: What computes each FFF layer.
        linears: What computes each linear layer beside them; empty if they were left alone.
        attention: Type in which attention's dot products are computed.
        agreement: Of the outputs with those before.
        bytes_before: Bytes that the weights took in memory.
        bytes_after: Bytes that they take now.
        output: The folder; None if none was asked for.
    """

    layers: list[LayerDeployment]
    linears: list[LinearDeployment]
    attention: str
    agreement: Agreement
    bytes_before: int
    bytes_after: int
    output: Path | None


def deploy_folder(name: str, options: DeployOptions) -> tuple[Any, Deployed]:
    """Deploy a saved model, and write it as a folder that loads deployed.

    The folder is the one given, with a word in its config on how to compute it: plain `from_pretrained` reads
    it, once fffconvert is imported, and so does whatever is built on it. Weights stay as they were stored,
    because another machine may want another form; they take their new form when they are loaded.

    Args:
        name: A converted model.
        options: How; without an output it is only looked at.

    Returns:
        The deployed model, and what was done.

    Raises:
        FFFError: It is no converted model, the backend cannot run here, or the outputs changed by more than
            was allowed; nothing was written.
    """
    output, trust_remote_code = options.output, options.trust_remote_code
    if options.target == "cuda" and not torch.cuda.is_available():
        raise FFFError("`target=cuda`: torch finds no CUDA device here; deploy where the model will run")
    if output is not None:
        hub.check_output(output, overwrite=options.overwrite)
        if hub.resolve(name).folder is None:
            raise FFFError(f"{name} is no local folder; download it first, then deploy the folder")
    stored = hub.check_converted(name, trust_remote_code=trust_remote_code)
    if stored.get("deployment") is not None:
        raise FFFError(f"{name} is deployed already; deploy the folder that it was made from")
    texts = None if options.text is None else read_texts(options.text, options.text_columns, options.lines)
    loaded = hub.load(name, trust_remote_code=trust_remote_code)
    model = loaded.model.to(options.target)
    before = weight_bytes(model)
    outputs = Outputs(model, loaded.tokenizer, texts)
    base = stored.get("base_model")
    # A folder holds no dense blocks, so what is to be written is computed by trees; without, all is compared.
    originals = {}
    if base and output is None:
        recorded = (loaded.source.folder or Path()) / RECIPE
        revision = read_conversion(recorded.parent).get("revision") if recorded.is_file() else None
        originals = original_blocks(base, revision, trust_remote_code)
    layers = deploy_layers(model, options.backend, options.dtype, originals=originals)
    linears, attention = [], "float32"
    if options.quantize_linear != "none" and options.target == "cpu":
        linears, attention = int8_linear_layers(model), fast_attention(model)
    deployment = _deployment(options.target, layers, linears, attention)
    if output is not None:
        apply(model, deployment)  # what is checked is what will be loaded
    agreement = outputs.agreement(model)
    if 1 - agreement.value > options.max_drop:
        raise FFFError(
            f"the outputs agree with those before to {agreement.value:.3f} ({agreement.measure}); "
            f"`max_drop={options.max_drop:g}` asks for {1 - options.max_drop:.3f}. Try `dtype=float32` or "
            "`quantize_linear=none`, or allow more"
        )
    written = None
    result = Deployed(layers, linears, attention, agreement, before, weight_bytes(model), None)
    if output is not None:
        folder = loaded.source.folder
        assert folder is not None, "checked above"
        written = _write(folder, deployment, result, output, options.overwrite)
    return model, dataclasses.replace(result, output=written)


def _deployment(
    target: str, layers: list[LayerDeployment], linears: list[LinearDeployment], attention: str
) -> Deployment:
    int8 = {kind: tuple(m.name for m in linears if (m.kind, m.dtype) == (kind, "int8")) for kind in _KINDS}
    rows = {layer.name: layer.dtype for layer in layers}
    groups: dict[int, list[str]] = {}
    for found in linears:
        if found.group is not None:
            groups.setdefault(found.group, []).append(found.name)
    joined = tuple(map(tuple, groups.values()))
    return Deployment(target, rows, int8["linear"], int8["trunk"], joined, attention)


_KINDS = ("linear", "trunk")


def _write(
    folder: Path, deployment: Deployment, result: Deployed, output: str | Path, overwrite: bool
) -> Path:
    needed = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with writing(output, needed, overwrite=overwrite) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
        path = partial / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["quantization_config"]["deployment"] = plain(deployment)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        document = json.dumps({"deployed_from": str(folder), **plain(result)}, indent=2)
        (partial / RECORD).write_text(document + "\n", encoding="utf-8")
    return Path(output).expanduser().resolve()
