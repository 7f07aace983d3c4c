"""A distillation from start to end: text, stages one after the other, what is written, how it is resumed."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from safetensors.torch import load_model, save_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments
from transformers.integrations import TensorBoardCallback

from fffconvert.controls import Control
from fffconvert.distillation.cache import CachedTeacher, build_cache, check_cacheable
from fffconvert.distillation.checks import check_devices, check_stage, is_causal, needs_teacher
from fffconvert.distillation.data import (
    WINDOW,
    Collate,
    Draws,
    lengths_of,
    read_rows,
    some_held_out,
    split_rows,
    token_sequences,
)
from fffconvert.distillation.distiller import Distiller, LiveTeacher
from fffconvert.distillation.recipe import Data, Precision, Recipe, RoutingMode, Stage
from fffconvert.distillation.signals import Places, taps_of
from fffconvert.distillation.trained import add_lora, choose_trained
from fffconvert.distillation.trainer import DistillTrainer, Interrupt, last_checkpoint
from fffconvert.errors import FFFError
from fffconvert.fit.length import longest
from fffconvert.fit.rows import TEXT
from fffconvert.store import folder_of

JOURNAL, TENSORBOARD = "training.jsonl", "tensorboard"
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Trainee:
    """What a run is about.

    Attributes:
        student: The model that is trained.
        teacher: What it is compared with, or None.
        tokenizer: Of both.
        control: What the student is a control of, if it is one.
        places: Where its blocks are.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel | None
    tokenizer: Any
    control: Control | None = None
    places: Places = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        model: The trained model.
        steps: Optimiser steps.
        tokens: Training tokens.
        seconds: Time taken; of a resumed run, from where it went on.
        eval_loss: On held-out text, at the end.
    """

    model: PreTrainedModel
    steps: int
    tokens: int
    seconds: float
    eval_loss: float | None


def run_stages(trainee: Trainee, recipe: Recipe, folder: Path, texts: Sequence[str] | None = None) -> Trained:
    """Run the stages of a recipe; those that an earlier call finished are taken from the folder.

    Args:
        trainee: Student and teacher.
        recipe: The run.
        folder: For checkpoints and records.
        texts: Train on these instead of the recipe's data.

    Raises:
        FFFError: Something does not fit; before anything is trained, where that can be seen.
    """
    check_devices()
    folder.mkdir(parents=True, exist_ok=True)
    for stage in recipe.stages:
        if recipe.cache and needs_teacher(stage):
            check_cacheable(stage)
        if not stage.new_head:
            check_stage(stage, trainee.student, trainee.teacher, trainee.tokenizer)
    started = time.monotonic()
    done = (0, 0)
    eval_loss = None
    for index, stage in enumerate(recipe.stages):
        own = folder / f"stage-{index}"
        if stage.new_head:
            trainee = dataclasses.replace(trainee, student=_with_head(trainee.student, stage.new_head))
            check_stage(stage, trainee.student, trainee.teacher, trainee.tokenizer)
        record = own / "done.json"
        if record.is_file():
            load_model(trainee.student, own / "model.safetensors")
            found = json.loads(record.read_text(encoding="utf-8"))
        else:
            student, found = _run_stage(trainee, recipe, stage, own, folder / JOURNAL, done, texts)
            trainee = dataclasses.replace(trainee, student=student)
        done, eval_loss = (done[0] + found["tokens"], done[1] + found["steps"]), found["eval_loss"]
    seconds = time.monotonic() - started
    return Trained(trainee.student.eval(), done[1], done[0], seconds, eval_loss)


def _run_stage(
    trainee: Trainee,
    recipe: Recipe,
    stage: Stage,
    folder: Path,
    journal: Path,
    before: tuple[int, int],
    texts: Sequence[str] | None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    student = trainee.student
    data = recipe.data_of(stage)
    adapted = add_lora(student, stage.trained.lora_rank) if stage.trained.lora_rank else None
    choose_trained(student, stage, trainee.control)
    train, held_out = _sequences(recipe, data, trainee, texts)
    arguments = _arguments(recipe, stage, folder, train)
    teacher = None
    if needs_teacher(stage) and trainee.teacher is not None:
        teacher = LiveTeacher(trainee.teacher, taps_of(trainee.teacher, trainee.places))
    _choose_attention(student, teacher, stage, recipe)
    distiller = Distiller(student, teacher, stage, trainee.places, causal=is_causal(student))
    masked = bool(
        stage.objectives.mlm or (stage.objectives.logits and not is_causal(student) and not data.label)
    )
    collate = Collate(trainee.tokenizer, data, recipe.seed, masked=masked, fixed=bool(recipe.cache))
    if teacher is not None and recipe.cache:
        distiller.teacher = _cached(trainee, recipe, stage, distiller, collate, train, held_out)
    rows = 0
    if isinstance(train, Dataset):
        rows = len(train)
        train = Draws(train, arguments.max_steps * _step_size(arguments))
    interrupt = Interrupt()
    callbacks = [interrupt, *([EarlyStoppingCallback(stage.patience)] if stage.patience else [])]
    trainer = DistillTrainer(
        distiller,
        recipe,
        stage,
        journal,
        before,
        args=arguments,
        train_dataset=train,
        eval_dataset=None if held_out is None else Draws(held_out, len(held_out), rows),
        data_collator=collate,
        callbacks=callbacks,
    )
    if trainer.is_world_process_zero():
        trainer.add_callback(
            TensorBoardCallback(SummaryWriter(str(journal.parent / TENSORBOARD / folder.name)))
        )
    checkpoint = last_checkpoint(folder)
    _forget_after(journal, before[1] + _step_of(checkpoint))
    if trainer.is_world_process_zero():
        tqdm.write(_described(distiller, stage, arguments), file=sys.stderr)
    whole = copy.deepcopy(student) if trainer.is_fsdp_enabled else student  # FSDP shards it in place
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        interrupt.on_train_end()
        distiller.finish()
    if interrupt.asked:
        raise KeyboardInterrupt
    if whole is not student:
        _gather(trainer, whole)
        student = whole
    if adapted is not None:
        adapted.merge_and_unload()
    evaluations = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    best = min(evaluations) if stage.patience and evaluations else (evaluations or [None])[-1]
    found = {
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "eval_loss": best,
    }
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        partial = folder / "model.partial"
        save_model(student, str(partial))
        partial.replace(folder / "model.safetensors")
        (folder / "done.json").write_text(json.dumps(found), encoding="utf-8")
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return student, found


def _described(distiller: Distiller, stage: Stage, arguments: TrainingArguments) -> str:
    """What a stage is about to do, in one line."""
    trained = sum(p.numel() for p in distiller.parameters() if p.requires_grad)
    hard = stage.routing.mode is RoutingMode.HARD
    way = "the path-only operator" if hard else f"{stage.routing.mode.value} routing over every node"
    return (
        f"{stage.kind.value}: {arguments.max_steps:,} steps of {_step_size(arguments)} sequences, "
        f"{trained:,} trained parameters; {len(distiller.layers)} FFF layers on {way}"
    )


def _gather(trainer: DistillTrainer, student: PreTrainedModel) -> None:
    """Collect what FSDP has sharded in an unsharded copy of the student, in every process."""
    state = get_model_state_dict(
        trainer.model_wrapped, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    path = Path(trainer.args.output_dir, "gathered.pt")
    if trainer.is_world_process_zero():
        torch.save({name.removeprefix("student."): value for name, value in state.items()}, path)
    trainer.accelerator.wait_for_everyone()
    student.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    trainer.accelerator.wait_for_everyone()
    path.unlink(missing_ok=True)


def _cached(
    trainee: Trainee,
    recipe: Recipe,
    stage: Stage,
    distiller: Distiller,
    collate: Collate,
    train: Dataset | IterableDataset,
    held_out: Dataset | None,
) -> CachedTeacher:
    """The teacher's outputs on disk, for training and held-out rows; the first process makes them."""
    if not isinstance(train, Dataset) or not isinstance(distiller.teacher, LiveTeacher):
        raise FFFError("a cache needs data that is not streamed; leave streaming or the cache out")
    parts = [train, *([] if held_out is None else [held_out])]
    goals = stage.objectives
    key = (recipe.data_of(stage), recipe.seed, trainee.tokenizer, goals.temperature, goals.pooling)
    with PartialState().main_process_first():
        folder = build_cache(
            folder_of("teachers"),
            key,
            distiller.teacher,
            parts,
            collate,
            stage,
            distiller.positions,
            top=recipe.cache_top,
            bfloat16=recipe.precision is Precision.BFLOAT16,
        )
    return CachedTeacher(folder)


def _sequences(
    recipe: Recipe, data: Data, trainee: Trainee, texts: Sequence[str] | None
) -> tuple[Dataset | IterableDataset, Dataset | None]:
    """Token sequences to train on and to evaluate on."""
    tokenizer = trainee.tokenizer
    length = longest(trainee.student, tokenizer, data.length, warn=True)
    if texts is not None:
        rows: Any = Dataset.from_dict({TEXT: list(texts)})
        data = dataclasses.replace(data, text=(TEXT,))
    else:
        rows = read_rows(data.train, data)
    held_out: Any = None
    if data.evaluation:
        named = read_rows(data.evaluation, dataclasses.replace(data, streaming=False))
        held_out = token_sequences(named, tokenizer, data, length)
    elif isinstance(rows, Dataset) and data.held_out:
        rows, split = split_rows(rows, data, recipe.seed)
        held_out = some_held_out(token_sequences(split, tokenizer, data, length))
    if isinstance(rows, IterableDataset):
        rows = rows.shuffle(recipe.seed, buffer_size=WINDOW)
    return token_sequences(rows, tokenizer, data, length), held_out


def _arguments(
    recipe: Recipe, stage: Stage, folder: Path, train: Dataset | IterableDataset
) -> TrainingArguments:
    """The stage in Trainer's words."""
    options: dict[str, Any] = {"max_steps": 1}
    common = {
        "output_dir": str(folder),
        "per_device_train_batch_size": stage.batch_size,
        "gradient_accumulation_steps": stage.accumulation,
    }
    steps = stage.steps
    if not steps and isinstance(train, Dataset):
        per_step = _step_size(TrainingArguments(**common, **options))
        tokens = int(lengths_of(train).sum()) / len(train)
        wanted = stage.tokens / tokens if stage.tokens else stage.epochs * len(train)
        steps = max(1, int(wanted / per_step))
    every = min(steps, stage.eval_steps or -(-steps // 10))
    evaluates = bool(recipe.data_of(stage).evaluation) or not recipe.data_of(stage).streaming
    return TrainingArguments(
        **common,
        max_steps=steps,
        per_device_eval_batch_size=EVALUATION_BATCH,
        max_grad_norm=stage.clip,
        adam_beta1=stage.betas[0],
        adam_beta2=stage.betas[1],
        learning_rate=stage.learning_rate,
        optim="adamw_torch_fused",
        bf16=recipe.precision is Precision.BFLOAT16,
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=recipe.log_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        load_best_model_at_end=bool(stage.patience) and evaluates,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        remove_unused_columns=False,
        report_to="none",
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
        seed=recipe.seed,
        data_seed=recipe.seed,
        ddp_find_unused_parameters=False,
    )


def _choose_attention(
    student: PreTrainedModel, teacher: LiveTeacher | None, stage: Stage, recipe: Recipe
) -> None:
    """Plain attention where its maps are compared, and where torch's fused backward is the slower one."""
    slow_backward = recipe.precision is Precision.BFLOAT16 and not torch.accelerator.is_available()
    if stage.objectives.attention or slow_backward:
        cast(Any, student).set_attn_implementation("eager")
    if stage.objectives.attention and teacher is not None:
        cast(Any, teacher.model).set_attn_implementation("eager")


def _step_size(arguments: TrainingArguments) -> int:
    """Sequences of one optimiser step, over all processes."""
    own = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return int(own * arguments.world_size)


def _with_head(student: PreTrainedModel, classes: int) -> PreTrainedModel:
    """The student below a new classification head."""
    with tempfile.TemporaryDirectory(prefix="fffconvert-") as folder:
        student.save_pretrained(folder)
        cls = transformers.AutoModelForSequenceClassification
        model: PreTrainedModel = cls.from_pretrained(folder, num_labels=classes, ignore_mismatched_sizes=True)
    return model


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _forget_after(journal: Path, step: int) -> None:
    """Take back what a killed run recorded behind its last checkpoint."""
    if not journal.is_file():
        return
    lines = journal.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    partial = journal.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    partial.replace(journal)
