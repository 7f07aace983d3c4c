"""Which parameters of a student are trained."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fffconvert.controls import Control, frozen_parameters
from fffconvert.distillation.recipe import Kind, Stage, Trained
from fffconvert.errors import FFFError, need
from fffconvert.tree import FFFLayer


def kinds_of(model: PreTrainedModel) -> dict[str, str]:
    """For each parameter, by name, the field of `Trained` that it belongs to."""
    kinds: dict[str, str] = {}
    prefix = f"{model.base_model_prefix}."
    headless = model.base_model is model
    for path, module in model.named_modules():
        inside = path.split(".")
        head = not (headless or f"{path}.".startswith(prefix)) or any("pooler" in part for part in inside)
        if isinstance(module, FFFLayer):
            kind = "trees"
        elif isinstance(module, nn.Embedding):
            kind = "embeddings"
        elif head:
            kind = "head"
        elif "norm" in type(module).__name__.lower():
            kind = "norms"
        else:
            kind = "attention"
        for name, _ in module.named_parameters(path, recurse=False):
            kinds.setdefault(name, kind)
    return kinds


def choose_trained(model: PreTrainedModel, stage: Stage, control: Control | None) -> None:
    """Ask for gradients where the stage trains, and nowhere else.

    Raises:
        FFFError: Nothing is left to train.
    """
    trained = stage.trained
    if stage.kind is Kind.BLOCKS:
        trained = Trained(trees=True, norms=False, attention=False)
    kinds = kinds_of(model)
    lora = {name for name in kinds if "lora_" in name}
    for name, parameter in model.named_parameters():
        chosen = getattr(trained, kinds[name]) and not (trained.lora_rank and kinds[name] == "attention")
        parameter.requires_grad_(bool(chosen) or name in lora)
    for layer in (module for module in model.modules() if isinstance(module, FFFLayer)):
        for name in frozen_parameters(control, layer.spec):
            layer.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FFFError(
            "nothing would be trained; set one of trained.trees, norms, attention, embeddings, head"
        )


def add_lora(model: PreTrainedModel, rank: int) -> Any:
    """Put low-rank updates beside the linear maps of attention; `merge_and_unload` of the result merges them.

    Raises:
        FFFError: `peft` is not installed.
    """
    need("peft", "lora_rank", "train")
    from peft import LoraConfig, get_peft_model

    kinds = kinds_of(model)
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and kinds.get(f"{name}.weight") == "attention"
    ]
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
