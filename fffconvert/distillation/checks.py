"""What must hold before a run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import nn
from transformers import PreTrainedModel

from fffconvert.distillation.distiller import has_token_head
from fffconvert.distillation.recipe import Kind, Recipe, Stage
from fffconvert.errors import FFFError
from fffconvert.tree import FFFLayer

HEADLESS = (
    "{who} is {name}, which has no {head} head; take a checkpoint that has one, or match "
    "embedding_cosine, embedding_similarity and hidden_states, which need none"
)


def check_devices() -> None:
    """Refuse one process for several GPUs: Trainer would wrap the student in `nn.DataParallel`.

    That splits every tensor of a batch along its first axis, the counts by which losses are divided as well.

    Raises:
        FFFError: There are several, and one process.
    """
    count = torch.cuda.device_count()
    if count > 1 and PartialState().distributed_type is DistributedType.NO:
        raise FFFError(
            f"found {count} GPUs and one process; expected a process for each: start it with accelerate "
            "launch or torchrun, or show it one GPU, as with CUDA_VISIBLE_DEVICES=0"
        )


def local_files(recipe: Recipe) -> list[Path]:
    """The files that a recipe's text comes from, without data sets from elsewhere."""
    parts = [recipe.data, *(stage.data for stage in recipe.stages if stage.data is not None)]
    names = [name for data in parts for name in (*data.train, *data.evaluation)]
    return [path for path in (Path(name).expanduser() for name in names) if path.is_file()]


def is_causal(model: nn.Module) -> bool:
    """Whether a model predicts each token from those before it."""
    config = getattr(model, "config", None)
    name = type(model).__name__
    return has_token_head(model) and (
        name.endswith(("CausalLM", "LMHeadModel")) or bool(getattr(config, "is_decoder", False))
    )


def is_classifier(model: nn.Module) -> bool:
    """Whether a model gives one prediction for a sequence."""
    return type(model).__name__.endswith("ForSequenceClassification")


def needs_teacher(stage: Stage) -> bool:
    """Whether an objective compares with a teacher."""
    alone = {"mlm", "clm", "labels"}
    return stage.kind is Kind.BLOCKS or not set(stage.objectives.weights) <= alone


def check_stage(stage: Stage, student: PreTrainedModel, teacher: Any, tokenizer: Any) -> None:
    """Refuse objectives that student, teacher or tokenizer cannot serve.

    Raises:
        FFFError: Which, and what to do.
    """
    goals = stage.objectives
    if stage.kind is Kind.BLOCKS and not any(isinstance(m, FFFLayer) for m in student.modules()):
        raise FFFError("a stage of kind blocks trains FFF layers, and the model has none; convert it first")
    if needs_teacher(stage) and teacher is None:
        raise FFFError("the objectives compare with a teacher, and there is none; give `teacher`")
    if goals.mlm:
        _need_head(
            student, "student", "masked-language-model", has_token_head(student) and not is_causal(student)
        )
        if tokenizer.mask_token_id is None:
            raise FFFError("the objective mlm needs a tokenizer with a mask token, and this one has none")
    if goals.clm:
        _need_head(student, "student", "causal-language-model", is_causal(student))
    if goals.labels:
        _need_head(student, "student", "classification", is_classifier(student))
    if goals.logits:
        for who, model in (("student", student), ("teacher", teacher)):
            _need_head(model, who, "prediction", has_token_head(model) or is_classifier(model))
        if student.config.vocab_size != teacher.config.vocab_size and not is_classifier(student):
            raise FFFError(
                f"the student predicts {student.config.vocab_size} tokens, the teacher "
                f"{teacher.config.vocab_size}; logits can be compared only over one vocabulary"
            )


def _need_head(model: Any, who: str, head: str, there: bool) -> None:
    if not there:
        raise FFFError(HEADLESS.format(who=f"the {who}", name=type(model).__name__, head=head))
