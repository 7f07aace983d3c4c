"""GLUE: a model with a new classification head, fine-tuned as for UltraFastBERT.

Reference: arXiv 2311.10770, section 4: at most five epochs, learning rate 4e-5, batches of 16. What counts is
the model at the end of training: choosing an epoch by the development set would be tuning on it.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fffconvert.errors import FFFError
from fffconvert.evaluation.data import Row, Table
from fffconvert.evaluation.metrics import ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN, Metric, Units
from fffconvert.fit.length import longest

LEARNING_RATE, BATCH, EPOCHS, LENGTH = 4e-5, 16, 5, 128
PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class Glue:
    """One of GLUE's tasks.

    Attributes:
        train: Rows to learn from.
        dev: Rows to be tested on.
        metrics: The official ones.
    """

    train: Table
    dev: Table
    metrics: tuple[Metric, ...]

    @property
    def labels(self) -> int:
        """Number of classes; 1 for a regression."""
        labels = self.train.labels or ()
        return 1 if isinstance(labels[0], float) else len(labels)


def _task(
    folder: str,
    texts: tuple[str, ...],
    labels: tuple[Any, ...],
    *metrics: Metric,
    dev: Sequence[str] = ("dev",),
    split: str = "validation",
) -> Glue:
    def table(files: Sequence[str], part: str) -> Table:
        place = tuple(f"glue/{folder}/{file}" for file in files)
        return Table(place, ("nyu-mll/glue", folder, part), texts, labels=labels)

    return Glue(table(("train", "train.subset"), "train"), table(dev, split), metrics)


GLUE = {
    "cola": _task("cola", ("sentence",), (0, 1), MATTHEWS),
    "sst-2": _task("sst2", ("sentence",), (0, 1), ACCURACY),
    "mrpc": _task("mrpc", PAIR, (0, 1), ACCURACY, F1),
    "glue-sts-b": _task("stsb", PAIR, (0.0, 5.0), SPEARMAN, PEARSON),
    "qqp": _task("qqp", ("question1", "question2"), (0, 1), ACCURACY, F1, dev=("dev", "bimpm_dev")),
    "mnli": _task(
        "mnli",
        ("premise", "hypothesis"),
        (0, 1, 2),
        ACCURACY,
        dev=("dev_matched",),
        split="validation_matched",
    ),
    "mnli-mm": _task(
        "mnli",
        ("premise", "hypothesis"),
        (0, 1, 2),
        ACCURACY,
        dev=("dev_mismatched", "dev_mismatched.gold_subset"),
        split="validation_mismatched",
    ),
    "qnli": _task("qnli", ("question", "sentence"), (0, 1), ACCURACY),
    "rte": _task("rte", PAIR, (0, 1), ACCURACY),
    "wnli": _task("wnli", PAIR, (0, 1), ACCURACY),
}


def fine_tune(
    model: nn.Module,
    tokenizer: Any,
    task: Glue,
    train: Sequence[Row],
    dev: Sequence[Row],
    *,
    epochs: int,
    seed: int,
) -> Units:
    """Train a copy of a model with a new head, and let it answer.

    Args:
        model: The model; it stays as it is.
        tokenizer: Its tokenizer.
        task: What it is trained for.
        train: Rows to learn from.
        dev: Rows to answer.
        epochs: Passes over `train`.
        seed: Start of the head, order of the rows, dropout.

    Returns:
        Labels and answers: [dev rows, 2].

    Raises:
        FFFError: The model has no form with a classification head.
    """
    # Only this needs the trainer, whose import takes seconds.
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

    tokenizer = _with_padding(tokenizer)
    classifier = with_head(model, task.labels, seed, tokenizer.pad_token_id)
    quiet = not sys.stderr.isatty()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=4 * BATCH,
            num_train_epochs=epochs,
            seed=seed,
            train_sampling_strategy="group_by_length",  # padding would be half of the work
            use_cpu=next(model.parameters()).device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=quiet,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            classifier,
            arguments,
            train_dataset=_encoded(train, task, tokenizer, classifier),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.args.train_sampling_strategy = "random"  # grouped, rows to predict would lose their order too
        answers = trainer.predict(_encoded(dev, task, tokenizer, classifier)).predictions
    answers = answers[0] if isinstance(answers, tuple) else answers
    found = answers[:, 0] if task.labels == 1 else answers.argmax(-1)
    return np.column_stack([[row["label"] for row in dev], found]).astype(np.float64)


def with_head(model: nn.Module, labels: int, seed: int, pad: int | None) -> nn.Module:
    """A copy of a model's body, with its FFF layers if it has some, below a new classification head.

    Raises:
        FFFError: transformers has no class for that.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = copy.deepcopy(getattr(model, "config", None))
    cls = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if cls is None or config is None:
        raise FFFError(
            f"{type(model).__name__} has no form with a classification head; leave the GLUE tasks out"
        )
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.num_labels = labels
    config.problem_type = "regression" if labels == 1 else "single_label_classification"
    config.pad_token_id = pad
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found: nn.Module = cls(config)
    body: Any = found.base_model
    own: Any = model.base_model
    for name, child in copy.deepcopy(own).named_children():
        if getattr(body, name, None) is not None:  # a pooler that the new form lacks stays away
            setattr(body, name, child)
    return found.float()


def _with_padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is not None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _encoded(rows: Sequence[Row], task: Glue, tokenizer: Any, model: nn.Module) -> list[dict[str, Any]]:
    texts = [[row[name] for row in rows] for name in task.train.texts]
    length = longest(model, tokenizer, LENGTH)
    encoded = tokenizer(*texts, truncation=True, max_length=length)
    kind = float if task.labels == 1 else int
    return [
        {**{name: values[index] for name, values in encoded.items()}, "labels": kind(row["label"])}
        for index, row in enumerate(rows)
    ]
