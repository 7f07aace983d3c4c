"""Write the tiny checkpoints of this release that all later ones must read: run it once for each release.

`python tests/hub/make_release_fixture.py` makes folders `tests/hub/releases/VERSION/NAME/`: a checkpoint, and
in `expected.safetensors` what was put in and what came out.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from fffconvert.locate import locate
from fffconvert.plan import FFFSpec
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)

import fffconvert
from fffconvert import surgery
from fffconvert.hub import mark_converted
from fffconvert.hub.deployment import Deployment
from fffconvert.tree import FFFLayer

RELEASES = Path(__file__).parent / "releases"
SHAPE = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
}
BERT = BertConfig(**SHAPE)
ALBERT = AlbertConfig(**{**SHAPE, "num_hidden_layers": 3, "embedding_size": 8})
LLAMA = LlamaConfig(**SHAPE, num_key_value_heads=1)
PAPER = FFFSpec(16, 16, depth=3)
BRANCH = FFFSpec(16, 16, depth=2, trees=2, branch_outputs=True)
LEAVES = replace(
    BRANCH, depth=1, trunk=2, leaf_width=4, leaf_sparsity=0.5, leaf_gated=True, activation="silu"
)
CASES = {
    "bert-paper": (BertModel, BERT, PAPER),
    "bert-branch": (BertModel, BERT, BRANCH),
    "albert-shared": (AlbertModel, ALBERT, BRANCH),
    "llama-leaves": (LlamaModel, LLAMA, LEAVES),
    "bert-int8": (BertModel, BERT, replace(BRANCH, trunk=4)),
}
INPUTS = {
    "input_ids": torch.tensor([[2, 7, 11, 5, 3, 0], [2, 19, 23, 13, 8, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]),
}
NOISE, STEADY = 0.01, 0.2


@torch.no_grad()
def convert(model: PreTrainedModel, spec: FFFSpec) -> None:
    """Put layers of quarters in, which every machine and type of numbers holds exactly."""
    layers = {site: FFFLayer(spec) for site in locate(model)}
    for layer in layers.values():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape) / 4)
            if name == "fff_leaf_threshold":
                parameter.fill_(0.25)
    surgery.replace(model, layers)
    mark_converted(model, "somebody/original")


@torch.no_grad()
def outputs(model: PreTrainedModel) -> Tensor:
    return model(**INPUTS).last_hidden_state


@torch.no_grad()
def is_steady(model: PreTrainedModel) -> bool:
    """No token is so near a hyperplane or threshold that rounding could send it elsewhere."""
    expected = outputs(model)
    moved = copy.deepcopy(model)
    for _ in range(20):
        for name, bias in model.named_parameters():
            if name.endswith("in_bias"):
                moved.get_parameter(name).copy_(bias + NOISE * torch.randn_like(bias))
        if (outputs(moved) - expected).abs().max() > STEADY:
            return False
    return True


def models(model_class: type[PreTrainedModel], config: object, spec: FFFSpec) -> Iterator[PreTrainedModel]:
    """Models with ever other weights."""
    for seed in range(1000):
        torch.manual_seed(seed)
        model = model_class(config).eval()
        convert(model, spec)
        yield model


def deploy(folder: Path, model: PreTrainedModel) -> None:
    """Have the checkpoint compute in int8 wherever it can once it is loaded."""
    layers = [name for name, module in model.named_modules() if isinstance(module, FFFLayer)]
    linears = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    deployment = Deployment("cpu", dict.fromkeys(layers, "int8"), tuple(linears), tuple(layers))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"]["deployment"] = deployment.to_dict()
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    release = RELEASES / fffconvert.__version__
    if release.exists():
        raise SystemExit(f"{release} is there; what a release has written stays as it is")
    for name, (model_class, config, spec) in CASES.items():
        model = next(filter(is_steady, models(model_class, config, spec)))
        model.save_pretrained(release / name)
        if name.endswith("int8"):
            deploy(release / name, model)
        expected = outputs(AutoModel.from_pretrained(release / name))
        save_file(INPUTS | {"last_hidden_state": expected}, release / name / "expected.safetensors")


if __name__ == "__main__":
    main()
