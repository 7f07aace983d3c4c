"""What a distillation does, as frozen dataclasses; a YAML recipe is the same written down."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fffconvert.errors import FFFError


class Unit(str, Enum):
    """What of a text is one sequence."""

    DOCUMENT = "document"
    SENTENCE = "sentence"


class Layout(str, Enum):
    """How sequences become batches."""

    BUCKET = "bucket"
    """Sequences of like length together, padded to the longest of their batch."""
    PACK = "pack"
    """Texts one after the other, cut to sequences of exactly the length; no padding."""


class Kind(str, Enum):
    """What a stage trains against."""

    BLOCKS = "blocks"
    """Each layer on what the teacher's block is given and makes of it; all of them side by side."""
    END_TO_END = "end-to-end"
    """The whole model on its own activations."""
    TASK = "task"
    """The whole model on labelled rows."""


class RoutingMode(str, Enum):
    """How gradients see the decisions."""

    HARD = "hard"
    """Through the active path only, as published."""
    STRAIGHT_THROUGH = "straight-through"
    """The path of hard routing; the decisions get the gradient that soft routing would give them."""
    SOFT = "soft"
    """Every node, weighted by the probability to come there, sharpened until routing is hard."""


class Schedule(str, Enum):
    """Learning rate after the warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class Precision(str, Enum):
    """What the products of the dense rest are computed in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Pooling(str, Enum):
    """How token states become a sentence embedding."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


@dataclass(frozen=True)
class Data:
    """Which text, and how it becomes sequences.

    Attributes:
        train: Local .txt (a text per line), .jsonl, .json, .csv or .parquet files, also as .gz, or names of
            `datasets`, as NAME or NAME:CONFIG.
        evaluation: The same, for the evaluation; by default rows held out of `train`.
        held_out: Share of the rows to hold out, at most 2,000, and as many sequences of them.
        text: Columns with text; empty to find them by their usual names. With a label they form one input (a
            pair), else each is a text of its own, but chats and what is asked and answered are one.
        lines: A text of a .txt file is a line; else a paragraph.
        label: Column with a class or a number; only for tasks.
        unit: A document or a sentence as one sequence.
        layout: Bucketed by length, or packed.
        length: Longest sequence, in tokens; longer texts are cut into several.
        shortest: Shorter sequences are left out.
        rows: At most so many rows of each source; 0 for all.
        streaming: Read while training: nothing is stored, and rows are drawn from a moving window.
        mask: Share of the tokens that are masked, where an objective asks for it.
        mask_replace: Of these, the share that becomes the mask token.
        mask_random: Of these, the share that becomes a random token; the rest stays.
    """

    train: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    held_out: float = 0.01
    text: tuple[str, ...] = ()
    lines: bool = False
    label: str = ""
    unit: Unit = Unit.DOCUMENT
    layout: Layout = Layout.BUCKET
    length: int = 128
    shortest: int = 4
    rows: int = 0
    streaming: bool = False
    mask: float = 0.15
    mask_replace: float = 0.8
    mask_random: float = 0.1


@dataclass(frozen=True)
class Objectives:
    """Weights of what is matched; 0 leaves it out.

    Attributes:
        block_outputs: Squared error of each block's output over the size of the teacher's, token by token.
        hidden_states: The same of the states between layers, teacher's and student's.
        layers: Which states; empty for all, -1 for the last (which a cache of the teacher holds).
        attention: Divergence of the attention maps.
        logits: Divergence of the predictions.
        temperature: Both predictions are softened by it.
        mlm: Cross-entropy on masked tokens.
        clm: Cross-entropy on the next token.
        embedding_cosine: 1 - cosine of student's and teacher's sentence embedding.
        embedding_similarity: Squared error of the cosines between the sentences of a batch.
        pooling: How token states become a sentence embedding.
        labels: Cross-entropy (or squared error of one number) on hard labels.
    """

    block_outputs: float = 0.0
    hidden_states: float = 0.0
    layers: tuple[int, ...] = ()
    attention: float = 0.0
    logits: float = 0.0
    temperature: float = 1.0
    mlm: float = 0.0
    clm: float = 0.0
    embedding_cosine: float = 0.0
    embedding_similarity: float = 0.0
    pooling: Pooling = Pooling.MEAN
    labels: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are not 0, by objective."""
        settings = ("layers", "temperature", "pooling")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in settings}
        return {name: weight for name, weight in values.items() if weight}


@dataclass(frozen=True)
class Routing:
    """Routing while training.

    Attributes:
        mode: Hard, straight-through, or soft.
        temperature: Of the sigmoid of soft decisions, in units of the logits.
        final_temperature: Where the temperature arrives, geometrically, when annealing ends.
        anneal: Share of the steps after which soft routing has become hard.
        load_balance: Weight of the squared distance of each node's mean decision from one half.
        entropy: Weight of the entropy of the decisions: makes them clear where positive.
        leak: Probability that a decision is turned round while training.
        freeze_after: Share of the steps after which the hyperplanes stay as they are.
    """

    mode: RoutingMode = RoutingMode.HARD
    temperature: float = 1.0
    final_temperature: float = 0.1
    anneal: float = 0.5
    load_balance: float = 0.0
    entropy: float = 0.0
    leak: float = 0.0
    freeze_after: float = 1.0


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Attributes:
        trees: The FFF layers.
        norms: Normalisations.
        attention: Attention, and whatever else a layer holds.
        embeddings: Of tokens and positions (and with them an output projection that shares their weights).
        head: What stands behind the last layer.
        lora_rank: Train attention as low-rank updates of this rank instead, merged at the end; needs `peft`.
    """

    trees: bool = True
    norms: bool = True
    attention: bool = True
    embeddings: bool = False
    head: bool = False
    lora_rank: int = 0


@dataclass(frozen=True)
class Stage:
    """One part of a run, with an optimiser of its own.

    Attributes:
        kind: Layer-wise, end to end, or a task.
        steps: Optimiser steps; or else:
        tokens: Training tokens; or else:
        epochs: Passes over the data.
        batch_size: Sequences per process and pass through the model.
        accumulation: Passes per step.
        learning_rate: Of all but the FFF layers.
        tree_learning_rate: Of the FFF layers; 0 for that of the rest.
        weight_decay: AdamW's, on matrices outside the FFF layers.
        betas: AdamW's.
        clip: Largest norm of the gradient; 0 for none.
        warmup: Share of the steps in which the learning rate rises.
        schedule: What it does then.
        dropout: Use the model's dropout; off, the student sees what it will see later.
        eval_steps: Evaluate (and keep a checkpoint) every so many steps; 0 for a tenth of the stage.
        patience: Stop after so many evaluations without a better loss, and go back to the best; 0 for never.
        new_head: Begin with a new classification head of so many classes (1: a number); 0 keeps the model's.
        objectives: What is matched.
        routing: Routing while training.
        trained: What is trained.
        data: Other text for this stage than for the rest.
    """

    kind: Kind = Kind.END_TO_END
    steps: int = 0
    tokens: int = 0
    epochs: float = 0.0
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-4
    tree_learning_rate: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.98)
    clip: float = 1.0
    warmup: float = 0.05
    schedule: Schedule = Schedule.LINEAR
    dropout: bool = False
    eval_steps: int = 0
    patience: int = 0
    new_head: int = 0
    objectives: Objectives = field(default_factory=Objectives)
    routing: Routing = field(default_factory=Routing)
    trained: Trained = field(default_factory=Trained)
    data: Data | None = None

    def freeze_step(self, steps: int) -> float:
        """The step of so many from which on the hyperplanes stay as they are; never reached without one."""
        share = self.routing.freeze_after
        return share * steps if share < 1 else float("inf")


@dataclass(frozen=True)
class Recipe:
    """A distillation.

    Attributes:
        stages: One after the other.
        data: Text for all stages.
        precision: Of the dense rest and the teacher; FFF layers compute in float32 at least.
        seed: Of the order of the data, of masks, of new weights.
        log_steps: A line of `training.jsonl` every so many steps.
        cache: Run the teacher once over the data, and store its outputs (see `fffconvert cache`).
        cache_top: How many of the teacher's predictions per token the cache holds.
        workers: Processes that prepare batches.
    """

    stages: tuple[Stage, ...] = (Stage(),)
    data: Data = field(default_factory=Data)
    precision: Precision = Precision.FLOAT32
    seed: int = 0
    log_steps: int = 10
    cache: bool = False
    cache_top: int = 32
    workers: int = 0

    def __post_init__(self) -> None:
        check_recipe(self)

    def data_of(self, stage: Stage) -> Data:
        """The text of a stage."""
        return stage.data or self.data


RATIOS = ("held_out", "mask", "mask_replace", "mask_random", "anneal", "leak", "freeze_after", "warmup")
POSITIVE = ("length", "batch_size", "accumulation", "temperature", "final_temperature", "log_steps")


def check_recipe(recipe: Recipe) -> None:
    """Refuse numbers out of range, and stages that ask for nothing.

    Raises:
        FFFError: Which number, and what was expected.
    """
    _check_numbers(recipe, "")
    if not recipe.stages:
        raise FFFError("the recipe has no stages; expected at least one")
    for index, stage in enumerate(recipe.stages):
        where, data = f"stages.{index}", recipe.data_of(stage)
        if sum(bool(value) for value in (stage.steps, stage.tokens, stage.epochs)) != 1:
            raise FFFError(f"{where} needs exactly one of steps, tokens and epochs")
        if stage.kind is not Kind.BLOCKS and not stage.objectives.weights:
            raise FFFError(f"{where} has no objective; give one of {', '.join(objective_names())} a weight")
        if stage.objectives.labels and not data.label:
            raise FFFError(f"{where} trains on labels, but data.label names no column")
        if data.streaming and not stage.steps:
            raise FFFError(f"{where} streams its data, whose size is unknown; give steps instead")
        if stage.objectives.mlm and not data.mask:
            raise FFFError(f"{where} has the objective mlm, but data.mask is 0; expected more")


def objective_names() -> list[str]:
    """All objectives."""
    settings = ("layers", "temperature", "pooling")
    return [f.name for f in dataclasses.fields(Objectives) if f.name not in settings]


def _check_numbers(value: Any, where: str) -> None:
    for f in dataclasses.fields(value):
        item, name = getattr(value, f.name), f"{where}{f.name}"
        if dataclasses.is_dataclass(item):
            _check_numbers(item, f"{name}.")
        elif isinstance(item, tuple):
            for index, part in enumerate(item):
                if dataclasses.is_dataclass(part):
                    _check_numbers(part, f"{name}.{index}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            low = 1e-12 if f.name in POSITIVE else 0
            high = 1.0 if f.name in RATIOS else float("inf")
            if not low <= item <= high:
                expected = f"0 to {high:g}" if high == 1 else "more than 0" if low else "0 or more"
                raise FFFError(f"{name} is {item}; expected {expected}")
