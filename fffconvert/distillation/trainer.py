"""transformers' Trainer with the sums, faults and records that distillation needs."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from fffconvert.distillation.data import Draws, LengthBuckets, lengths_of
from fffconvert.distillation.distiller import Distiller
from fffconvert.distillation.recipe import Layout, Recipe, Schedule, Stage
from fffconvert.errors import FFFError
from fffconvert.hub.metrics import Step
from fffconvert.records import plain
from fffconvert.tree import FFFLayer

COMPLETE = "complete"
"""Empty file in a checkpoint that was written to its end."""
WEIGHTS = "model.safetensors"
ROUTES = ("fff_in_weight", "fff_in_bias")


class DistillTrainer(Trainer):  # type: ignore[misc]
    """Trains a `Distiller`.

    Args:
        model: Student and loss.
        recipe: The run.
        stage: The part of it.
        journal: `training.jsonl`.
        before: Tokens and steps of earlier stages.
        **options: As for Trainer.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: Distiller,
        recipe: Recipe,
        stage: Stage,
        journal: Path,
        before: tuple[int, int],
        **options: Any,
    ) -> None:
        super().__init__(model=model, callbacks=[_Anneal(), *options.pop("callbacks", ())], **options)
        self.recipe, self.stage, self.journal, self.before = recipe, stage, journal, before
        self.loss_is_scaled_for_ga = True  # sums are divided by the counts of the whole step
        self.model_accepts_loss_kwargs = False
        self.can_return_loss = True
        self.label_names: list[str] = []
        self._sums: dict[str, Tensor] = {}
        self._passes = 0
        self._clock = (time.monotonic(), 0)
        for unwanted in (PrinterCallback, ProgressCallback):
            self.remove_callback(unwanted)
        if not self.args.disable_tqdm:
            self.add_callback(_Bar())

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset
        if not isinstance(dataset, Draws):
            return None
        group = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        group *= self.args.world_size
        bucket = self.recipe.data_of(self.stage).layout is Layout.BUCKET
        return LengthBuckets(
            lengths_of(dataset.sequences), len(dataset), group, self.args.data_seed, bucket=bucket
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """The passes of one step, each with the counts of the whole step."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            distiller = cast(Distiller, self.accelerator.unwrap_model(self.model))
            counts = torch.stack([torch.stack(list(distiller.counts(batch))) for batch in batches]).sum(0)
            counts = self.accelerator.reduce(counts.to(device), "sum")
            self.state.num_input_tokens_seen += int(counts[0])
            for batch in batches:
                batch["counts"] = counts
        return batches, None

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """One pass, forward and backward."""
        try:
            return cast(Tensor, super().training_step(*args, **options))
        except RuntimeError as error:
            raise _out_of_memory(error, self.stage) or error from None

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one pass; its mean over the processes is that of the step."""
        alone = "counts" not in inputs
        found = model(**inputs)
        loss = found["loss"]
        if not alone:
            if not bool(torch.isfinite(loss)):
                raise self._not_finite(inputs, found)
            for name, value in found.items():
                if name != "loss":
                    self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._passes += 1
            loss = loss * self.args.world_size
        return (loss, found) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of one batch that is held out."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over `parameter_groups`."""
        if self.optimizer is None:
            owner = self.model if model is None else model
            groups = parameter_groups(owner, self.stage)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, owner)
            self.optimizer = cls(groups, **options)
        return cast(torch.optim.Optimizer, self.optimizer)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The stage's schedule; the hyperplanes' rate falls to 0 where they are to stay."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            curves = [
                _curve(self.stage, num_training_steps, frozen=group["kind"] == "routes")
                for group in optimizer.param_groups
            ]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, curves)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, and append a line to `training.jsonl`."""
        tokens = self.state.num_input_tokens_seen
        if "loss" in logs:
            now, (then, earlier) = time.monotonic(), self._clock
            logs["tokens_per_second"] = round((tokens - earlier) / max(now - then, 1e-9), 1)
            self._clock = (now, tokens)
            for name, total in self._sums.items():
                mean = self.accelerator.reduce(
                    total * self.args.gradient_accumulation_steps / self._passes, "sum"
                )
                logs[f"loss_{name}"] = float(mean)
            self._sums, self._passes = {}, 0
        super().log(logs, start_time)
        if self.is_world_process_zero() and ("loss" in logs or "eval_loss" in logs):
            steps, before = self.state.global_step + self.before[1], self.before[0]
            finite = {name: value for name, value in logs.items() if math.isfinite(value)}
            losses = {name[5:]: value for name, value in finite.items() if name.startswith("loss_")}
            kept = ("loss", "tokens_per_second", "learning_rate", "grad_norm", "eval_loss")
            known = {name: finite[name] for name in kept if name in finite}
            step = Step(steps, before + tokens, self.stage.kind.value, **known, losses=losses)
            line = {name: value for name, value in plain(step).items() if value not in (None, {})}
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Evaluate; the time it takes is no training time."""
        started = time.monotonic()
        found: dict[str, float] = super().evaluate(*args, **options)
        self._clock = (self._clock[0] + time.monotonic() - started, self._clock[1])
        return found

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                Path(folder, COMPLETE).touch()
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, RuntimeError) and "writ" not in str(error):
                raise
            kept = last_checkpoint(Path(self.args.output_dir))
            raise FFFError(
                f"cannot write checkpoint {folder.name}: {getattr(error, 'strerror', None) or error}; "
                f"the last good one is {kept or 'none'}: free some space and run the same command again"
            ) from error
        if self.args.should_save:
            _forget_old(
                Path(self.args.output_dir), {folder, Path(self.state.best_model_checkpoint or folder)}
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save and not self.is_fsdp_enabled:  # FSDP writes its own, with the optimiser
            os.makedirs(output_dir or self.args.output_dir, exist_ok=True)
            save_model(self.accelerator.unwrap_model(self.model), str(Path(output_dir or "", WEIGHTS)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(self.model, Path(resume_from_checkpoint, WEIGHTS))
        self._clock = (time.monotonic(), self.state.num_input_tokens_seen)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            load_model(self.model, Path(self.state.best_model_checkpoint, WEIGHTS))

    def _not_finite(self, inputs: dict[str, Tensor], found: dict[str, Tensor]) -> FFFError:
        """Say where a loss that is no number came from."""
        distiller = self.accelerator.unwrap_model(self.model)
        terms = [name for name, value in found.items() if name != "loss" and not torch.isfinite(value).all()]
        where = next(
            (f"parameter {name}" for name, p in distiller.named_parameters() if not torch.isfinite(p).all()),
            None,
        )
        where = where or _first_not_finite(distiller, inputs)
        rows = inputs["row"].tolist() if "row" in inputs else "a stream"
        return FFFError(
            f"the loss is {float(found['loss'])} at step {self.state.global_step + 1} "
            f"({', '.join(terms)}; {where}; batch rows {rows}); lower learning_rate, or look at these rows"
        )


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """On Ctrl-C finishes the step and keeps a checkpoint; a second Ctrl-C stops at once.

    Attributes:
        asked: Whether it was pressed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._usual: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the signal; several processes would stop at different steps, and are left alone."""
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._usual = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True
        self.on_train_end()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop once it was pressed."""
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Give the signal back."""
        if self._usual is not None:
            signal.signal(signal.SIGINT, self._usual)
            self._usual = None


class _Anneal(TrainerCallback):  # type: ignore[misc]
    """Tells the layers how far the run is."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Before each step."""
        while not isinstance(model, Distiller):
            model = model.module
        model.anneal(state.global_step / max(1, state.max_steps))


class _Bar(ProgressCallback):  # type: ignore[misc]
    """A bar with loss, tokens per second and time left."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the last figures beside the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            speed = f"{logs['tokens_per_second']:,.0f} tokens/s"
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4f}, {speed}", refresh=False)


def parameter_groups(model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """Groups for the optimiser: hyperplanes, the rest of the FFF layers, other matrices, other vectors."""
    rate = stage.tree_learning_rate or stage.learning_rate
    groups: dict[str, dict[str, Any]] = {
        "routes": {"lr": rate, "weight_decay": 0.0},
        "trees": {"lr": rate, "weight_decay": 0.0},
        "matrices": {"lr": stage.learning_rate, "weight_decay": stage.weight_decay},
        "vectors": {"lr": stage.learning_rate, "weight_decay": 0.0},
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rpartition(".")[2]
        if leaf.startswith("fff_"):
            kind = "routes" if leaf in ROUTES else "trees"
        else:
            kind = "matrices" if parameter.dim() > 1 else "vectors"
        groups[kind].setdefault("params", []).append(parameter)
    return [{"kind": kind, **group} for kind, group in groups.items() if "params" in group]


def _curve(stage: Stage, steps: int, *, frozen: bool) -> Callable[[int], float]:
    warm = max(1, round(stage.warmup * steps))

    def factor(step: int) -> float:
        if frozen and step >= stage.freeze_step(steps):
            return 0.0
        if step < warm:
            return (step + 1) / warm
        left = max(0.0, (steps - step) / max(1, steps - warm))
        if stage.schedule is Schedule.CONSTANT:
            return 1.0
        return (1 - math.cos(math.pi * left)) / 2 if stage.schedule is Schedule.COSINE else left

    return factor


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _forget_old(folder: Path, kept: set[Path]) -> None:
    for path in folder.glob("checkpoint-*"):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _out_of_memory(error: Exception, stage: Stage) -> FFFError | None:
    if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
        return None
    return FFFError(
        f"out of memory at batch_size {stage.batch_size}; halve it and double accumulation (now "
        f"{stage.accumulation}), which trains alike, or shorten data.length"
    )


def _first_not_finite(distiller: Distiller, inputs: dict[str, Tensor]) -> str:
    """The first module of the student whose output is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and not torch.isfinite(first).all():
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in distiller.student.named_modules()
        if isinstance(module, FFFLayer) or not any(module.children())
    ]
    try:
        with torch.no_grad():
            distiller(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return f"first in layer {found[0]}" if found else "in the objectives themselves"
