"""The module that is trained: a student, what it is compared with, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fffconvert.distillation import objectives
from fffconvert.distillation.objectives import Counts, mean_of
from fffconvert.distillation.recipe import Kind, RoutingMode, Stage
from fffconvert.distillation.signals import (
    Places,
    Signals,
    Taps,
    Wanted,
    chosen_states,
    layers_of,
    pooled,
    run,
    taps_of,
)
from fffconvert.private_names import unsplit_modules
from fffconvert.tree import FFFLayer, TrainingRouting

Teacher = Callable[[Mapping[str, Tensor], Wanted, Tensor | None], Signals]


class LiveTeacher:
    """A teacher that runs beside the student.

    Args:
        model: The model; it is put in eval mode.
        taps: Its blocks, where they are compared.
    """

    def __init__(self, model: nn.Module, taps: Taps | None) -> None:
        self.model, self.taps = model.eval(), taps

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], wanted: Wanted, positions: Tensor | None) -> Signals:
        """Run over a batch."""
        device = batch["input_ids"].device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        return run(self.model, batch, wanted, self.taps, positions)


class Distiller(nn.Module):
    """A student and its loss, as one module for Trainer to train, wrap and shard.

    The teacher is no submodule: it is neither saved nor sharded nor trained.

    Args:
        student: The model that is trained.
        teacher: Gives the signals to match; None where no objective needs one.
        stage: Objectives, and how layers route.
        causal: The model predicts next tokens.
        places: Where the student's blocks are.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        stage: Stage,
        places: Places,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher, self.stage, self.causal = teacher, stage, causal
        self._no_split_modules = [FFFLayer.__name__, *(unsplit_modules(student) or ())]
        self.taps, self.layers = taps_of(student, places), layers_of(student, places)
        self.wanted = wanted_by(stage)
        for layer in self.layers:
            layer.routing = self._routing()

    @property
    def config(self) -> Any:
        """The student's."""
        return self.student.config

    def train(self, mode: bool = True) -> Distiller:
        """Training mode; the student uses dropout only if the stage says so."""
        super().train(mode)
        self.student.train(mode and self.stage.dropout)
        return self

    def _routing(self) -> TrainingRouting | None:
        routing = self.stage.routing
        hard = routing.mode is RoutingMode.HARD
        if hard and not (routing.leak or routing.load_balance or routing.entropy):
            return None
        return TrainingRouting(
            None if hard else routing.temperature,
            routing.mode is RoutingMode.STRAIGHT_THROUGH,
            routing.leak,
            routing.load_balance,
            routing.entropy,
        )

    def anneal(self, progress: float) -> None:
        """Set the temperature for a share of the steps that is done."""
        routing = self.stage.routing
        if routing.mode is RoutingMode.HARD:
            return
        done = progress / routing.anneal if routing.anneal else 1.0
        ratio = routing.final_temperature / routing.temperature
        soft = routing.mode is RoutingMode.STRAIGHT_THROUGH or done < 1
        for layer in self.layers:
            if layer.routing is not None:
                layer.routing.temperature = routing.temperature * ratio ** min(done, 1.0) if soft else None

    def finish(self) -> None:
        """Leave the student as inference wants it."""
        for layer in self.layers:
            layer.routing = None
        self.student.eval()

    def positions(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Where token predictions are compared: [sequences, tokens]; None for models that classify."""
        mask = batch["attention_mask"].bool()
        if self.stage.objectives.labels or not has_token_head(self.student):
            return None
        if self.causal:
            mask = mask.clone()
            mask[:, :-1] &= mask[:, 1:].clone()  # the last token has no successor
            mask[:, -1] = False
            return mask
        return batch["labels"] != -100 if "labels" in batch else mask

    def counts(self, batch: Mapping[str, Tensor]) -> Counts:
        """What a batch's sums are divided by, if it is alone."""
        tokens, positions = batch["attention_mask"].sum(), self.positions(batch)
        sequences = torch.tensor(len(batch["input_ids"]), device=tokens.device)
        return Counts(tokens, sequences if positions is None else positions.sum(), sequences)

    def forward(self, counts: Tensor | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            counts: [3], the `Counts` of the whole step; the batch's own by default.
            **batch: input_ids and attention_mask, [sequences, tokens]; labels and row where there are any.

        Returns:
            `loss`, and each objective before its weight.
        """
        divide = Counts(*(self.counts(batch) if counts is None else counts.unbind()))
        for layer in self.layers:
            if layer.routing:
                layer.routing.tokens = batch["attention_mask"].bool().flatten()
        positions = self.positions(batch) if self.wanted.logits else None
        teacher = None if self.teacher is None else self.teacher(batch, self.wanted, positions)
        if self.stage.kind is Kind.BLOCKS:
            assert teacher is not None
            losses = {"block_outputs": self._layerwise(teacher, batch, divide)}
            weights = {"block_outputs": 1.0}
        else:
            student = run(self.student, batch, self.wanted, self.taps, positions)
            with torch.autocast(batch["input_ids"].device.type, enabled=False):
                losses = self._losses(student, teacher, batch, divide, positions)
            weights = dict(self.stage.objectives.weights)
        terms = [term for layer in self.layers if layer.routing for term in layer.routing.terms]
        if terms:
            share = divide.tokens / batch["attention_mask"].sum()  # a mean over tokens, as a part of all
            losses["routing"], weights["routing"] = mean_of(terms) / share, 1.0
        for layer in self.layers:
            if layer.routing:
                layer.routing.terms.clear()
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return {"loss": loss, **{name: value.detach() for name, value in losses.items()}}

    def _layerwise(self, teacher: Signals, batch: Mapping[str, Tensor], divide: Counts) -> Tensor:
        """Each layer on what the teacher's block was given."""
        mask = batch["attention_mask"].bool()
        errors = []
        for layer, x, y in zip(self.layers, teacher.block_inputs, teacher.block_outputs, strict=True):
            axis = layer.spec.feature_axis
            found = layer(x.movedim(-1, axis)).movedim(axis, -1)
            errors.append(objectives.relative_error(found, y, mask) / divide.tokens)
        return mean_of(errors)

    def _losses(
        self,
        student: Signals,
        teacher: Signals | None,
        batch: Mapping[str, Tensor],
        divide: Counts,
        positions: Tensor | None,
    ) -> dict[str, Tensor]:
        """Each objective, before its weight."""
        goals, mask, losses = self.stage.objectives, batch["attention_mask"].bool(), {}
        if teacher is not None:
            pairs = {
                "block_outputs": (student.block_outputs, teacher.block_outputs),
                "hidden_states": (
                    chosen_states(student, goals.layers) if goals.hidden_states else [],
                    chosen_states(teacher, goals.layers) if goals.hidden_states else [],
                ),
            }
            for name, (own, other) in pairs.items():
                if goals.weights.get(name):
                    errors = [objectives.relative_error(a, b, mask) for a, b in zip(own, other, strict=True)]
                    losses[name] = mean_of(errors) / divide.tokens
            if goals.attention:
                maps = zip(student.attention, teacher.attention, strict=True)
                divergences = [objectives.attention_divergence(a, b, mask) for a, b in maps]
                losses["attention"] = mean_of(divergences) / divide.tokens
            if goals.logits and isinstance(student.logits, Tensor) and teacher.logits is not None:
                divergence = objectives.prediction_divergence(
                    student.logits, teacher.logits, goals.temperature
                )
                losses["logits"] = divergence / divide.targets
            if goals.embedding_cosine or goals.embedding_similarity:
                losses |= self._embeddings(student, teacher, batch["attention_mask"], divide)
        if isinstance(student.logits, Tensor):
            losses |= self._hard(student.logits, batch, divide, positions)
        return losses

    def _embeddings(
        self, student: Signals, teacher: Signals, mask: Tensor, divide: Counts
    ) -> dict[str, Tensor]:
        goals, losses = self.stage.objectives, {}
        own, other = pooled(student.last, mask, goals.pooling), teacher.embedding
        if other is None:
            other = pooled(teacher.last, mask, goals.pooling)
        if goals.embedding_cosine:
            losses["embedding_cosine"] = objectives.embedding_distance(own, other) / divide.sequences
        if goals.embedding_similarity:
            losses["embedding_similarity"] = objectives.similarity_error(own, other) / divide.sequences
        return losses

    def _hard(
        self, logits: Tensor, batch: Mapping[str, Tensor], divide: Counts, positions: Tensor | None
    ) -> dict[str, Tensor]:
        """Cross-entropies on what the batch itself says."""
        goals, losses = self.stage.objectives, {}
        if goals.labels:
            losses["labels"] = objectives.cross_entropy(logits, batch["labels"]) / divide.sequences
        if positions is None:
            return losses
        if goals.mlm:
            losses["mlm"] = objectives.cross_entropy(logits, batch["labels"][positions]) / divide.targets
        if goals.clm:
            following = batch["input_ids"].roll(-1, 1)[positions]
            losses["clm"] = objectives.cross_entropy(logits, following) / divide.targets
        return losses


def wanted_by(stage: Stage) -> Wanted:
    """What a stage's objectives need of a run."""
    goals = stage.objectives
    if stage.kind is Kind.BLOCKS:
        return Wanted(blocks=True)
    return Wanted(
        states=bool(goals.hidden_states) and goals.layers != (-1,),
        attention=bool(goals.attention),
        logits=bool(goals.logits or goals.mlm or goals.clm or goals.labels),
        blocks=bool(goals.block_outputs),
    )


def has_token_head(model: nn.Module) -> bool:
    """Whether a model predicts tokens."""
    find = getattr(model, "get_output_embeddings", None)
    return callable(find) and find() is not None
