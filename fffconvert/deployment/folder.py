"""The command `fffconvert deploy`: choose, check what is left of the quality, write the folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from fffconvert import hub
from fffconvert.deployment.agreement import Agreement, Outputs
from fffconvert.deployment.layers import LayerDeployment, deploy_layers, original_blocks
from fffconvert.deployment.linear import (
    LinearDeployment,
    check_quantize_linear,
    fast_attention,
    int8_linear_layers,
)
from fffconvert.deployment.memory import weight_bytes
from fffconvert.errors import FFFError
from fffconvert.fit.corpus import read_corpus
from fffconvert.hub.deployment import TARGETS, Deployment, apply
from fffconvert.hub.output import RECIPE, read_conversion, writing
from fffconvert.records import plain

RECORD = "deploy.json"


@dataclass(frozen=True)
class Settings:
    """How to deploy a folder.

    Attributes:
        target: "cpu" or "cuda": where it will run. It is measured there, so it must be here.
        backend: As of `fffconvert.deploy`.
        dtype: Row type of the trees, as of `fffconvert.deploy`.
        quantize_linear: "int8" or "none", for the linear layers and the attention beside the trees.
        max_drop: Largest loss of agreement with the model before, of 1; more is refused.
        texts: Text files or `datasets` names to compare the outputs on; by default prose from Python.
        text_columns: Of rows of data, those that hold text; empty to find them by their usual names.
    """

    target: str = "cpu"
    backend: str = "auto"
    dtype: str = "auto"
    quantize_linear: str = "int8"
    max_drop: float = 0.05
    texts: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_quantize_linear(self.quantize_linear)
        if self.target not in TARGETS:
            raise FFFError(f"--target is {self.target!r}; expected {' or '.join(TARGETS)}")
        if self.target == "cuda" and not torch.cuda.is_available():
            raise FFFError("--target cuda: torch finds no CUDA device here; deploy where the model will run")
        if self.target == "cuda" and self.quantize_linear == "int8":
            raise FFFError("--target cuda: int8 linear layers are for the CPU; add --quantize-linear none")
        if not 0 <= self.max_drop <= 1:
            raise FFFError(f"--max-drop is {self.max_drop}; expected a share from 0 to 1, as in 0.05")


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


def deploy_folder(
    name: str,
    settings: Settings,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Deployed:
    """Deploy a saved model, and write it as a folder that loads deployed.

    The folder is the one given, with a word in its config on how to compute it: plain `from_pretrained` reads
    it, once fffconvert is imported, and so does whatever is built on it. Weights stay as they were stored,
    because another machine may want another form; they take their new form when they are loaded.

    Args:
        name: A converted model.
        settings: How.
        output: Folder to write; None only chooses and checks.
        overwrite: Replace an existing output of fffconvert.
        trust_remote_code: Run code that the model brings along.

    Raises:
        FFFError: It is no converted model, the backend cannot run here, or the outputs changed by more than
            was allowed; nothing was written.
    """
    if output is not None:
        hub.check_output(output, overwrite=overwrite)
        if hub.resolve(name).folder is None:
            raise FFFError(f"{name} is no local folder; download it first, then deploy the folder")
    stored = hub.check_converted(name, trust_remote_code=trust_remote_code)
    if stored.get("deployment") is not None:
        raise FFFError(f"{name} is deployed already; deploy the folder that it was made from")
    texts = read_corpus(settings.texts, settings.text_columns) if settings.texts else None
    loaded = hub.load(name, trust_remote_code=trust_remote_code)
    model = loaded.model.to(settings.target)
    before = weight_bytes(model)
    outputs = Outputs(model, loaded.tokenizer, texts)
    base = stored.get("base_model")
    # A folder holds no dense blocks, so what is to be written is computed by trees; without, all is compared.
    originals = {}
    if base and output is None:
        recorded = (loaded.source.folder or Path()) / RECIPE
        revision = read_conversion(recorded.parent).get("revision") if recorded.is_file() else None
        originals = original_blocks(base, revision, trust_remote_code)
    layers = deploy_layers(model, settings.backend, settings.dtype, originals=originals)
    linears, attention = [], "float32"
    if settings.quantize_linear == "int8":
        linears, attention = int8_linear_layers(model), fast_attention(model)
    deployment = _deployment(settings.target, layers, linears, attention)
    if output is not None:
        apply(model, deployment)  # what is checked is what will be loaded
    agreement = outputs.agreement(model)
    if 1 - agreement.value > settings.max_drop:
        raise FFFError(
            f"the outputs agree with those before to {agreement.value:.3f} ({agreement.measure}); "
            f"--max-drop {settings.max_drop:g} asks for {1 - settings.max_drop:.3f}. Try --dtype float32 or "
            "--quantize-linear none, or allow more"
        )
    written = None
    result = Deployed(layers, linears, attention, agreement, before, weight_bytes(model), None)
    if output is not None:
        folder = loaded.source.folder
        assert folder is not None, "checked above"
        written = _write(folder, deployment, result, output, overwrite)
    return dataclasses.replace(result, output=written)


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
