"""A teacher's outputs on disk, so that a run on few cores pays for the teacher once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm

from fffconvert.distillation.data import Draws, content_hash, lengths_of
from fffconvert.distillation.distiller import LiveTeacher, wanted_by
from fffconvert.distillation.recipe import Kind, Objectives, Stage
from fffconvert.distillation.signals import Signals, TopLogits, Wanted, pooled
from fffconvert.errors import FFFError
from fffconvert.store import digest, written

BATCH = 64


def check_cacheable(stage: Stage) -> None:
    """Refuse objectives that need more of the teacher than a cache holds.

    Raises:
        FFFError: Which one.
    """
    goals = stage.objectives
    needs = {
        "block outputs": stage.kind is Kind.BLOCKS or goals.block_outputs > 0,
        "attention maps": goals.attention > 0,
        "states of all layers": goals.hidden_states > 0 and goals.layers != (-1,),
    }
    for name, needed in needs.items():
        if needed:
            raise FFFError(
                f"the objectives need the teacher's {name}, which no cache holds; leave the cache out, "
                "or match logits, embeddings, and hidden_states with layers: [-1]"
            )


class CachedTeacher:
    """A teacher's outputs for each row: its last states or its embeddings, and its top predictions.

    Args:
        folder: What `build_cache` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}

    def __call__(self, batch: Mapping[str, Tensor], wanted: Wanted, positions: Tensor | None) -> Signals:
        """Look a batch up by its rows."""
        rows, mask = batch["row"].tolist(), batch["attention_mask"].bool()
        device, signals = mask.device, Signals(last=torch.empty(0))
        if "states" in self._arrays:
            states = self._parts("states", "tokens", rows).view(torch.bfloat16)
            signals.last = torch.zeros(*mask.shape, states.shape[1], device=device, dtype=torch.float32)
            signals.last[mask] = states.to(device, torch.float32)
        if "embeddings" in self._arrays:
            found = torch.from_numpy(self._arrays["embeddings"][rows])
            signals.embedding = found.view(torch.bfloat16).to(device, torch.float32)
        if "top_index" in self._arrays:
            index, log_p = (self._parts(name, "positions", rows) for name in ("top_index", "top_log_p"))
            signals.logits = TopLogits(index.to(device).long(), log_p.to(device).float())
        return signals

    def _parts(self, name: str, unit: str, rows: Sequence[int]) -> Tensor:
        """What an array holds of some rows, one after the other."""
        bounds, array = self._arrays[unit], self._arrays[name]
        return torch.from_numpy(np.concatenate([array[slice(*bounds[row])] for row in rows]))


def build_cache(
    folder: Path,
    key: Sequence[Any],
    teacher: LiveTeacher,
    parts: Sequence[Dataset],
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]],
    stage: Stage,
    positions: Callable[[Mapping[str, Tensor]], Tensor | None],
    *,
    top: int,
    bfloat16: bool,
) -> Path:
    """Run a teacher over all rows and keep what the objectives need, unless that was done before.

    Args:
        folder: Where caches are kept.
        key: All that the outputs depend on beside what is named here, see `fffconvert.store.digest`; each has
            a folder of its own.
        teacher: The teacher.
        parts: Token sequences, whose rows are numbered through.
        collate: Makes batches, in which a row has one mask only.
        stage: Objectives.
        positions: Where a batch's token predictions are compared.
        top: How many predictions to keep.
        bfloat16: Compute the teacher in it.

    Returns:
        The folder of this key.

    Raises:
        FFFError: The disk is too small.
    """
    goals = stage.objectives
    own = {"goals": sorted(goals.weights), "top": top, "bfloat16": bfloat16}
    path = folder / digest(key, own, teacher.model, [content_hash(part) for part in parts])
    if path.is_dir():
        return path
    firsts = np.cumsum([0, *map(len, parts)])
    draws = [Draws(part, len(part), int(first)) for part, first in zip(parts, firsts, strict=False)]
    all_draws: Any = torch.utils.data.ConcatDataset(draws)
    lengths = np.concatenate([lengths_of(part) for part in parts])
    order = np.argsort(lengths, kind="stable")
    try:
        with written(path) as partial:
            partial.mkdir()
            writer = _Writer(partial, lengths, goals, top)
            for start in tqdm(range(0, len(order), BATCH), desc="teacher", unit="batch", disable=None):
                rows = order[start : start + BATCH]
                batch = collate([all_draws[int(row)] for row in rows])
                where = positions(batch) if goals.logits else None
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    signals = teacher(batch, wanted_by(stage), where)
                writer.write(rows, signals, batch["attention_mask"], where)
            writer.close()
    except OSError as error:
        raise FFFError(
            f"cannot write the cache {folder}: {error.strerror or error}; free some space, or name another"
        ) from error
    return path


class _Writer:
    """Appends what a teacher gives to files, and notes where each row's part of them is.

    Args:
        folder: Where.
        lengths: [rows], in tokens.
        goals: What is compared.
        top: How many predictions to keep.
    """

    def __init__(self, folder: Path, lengths: np.ndarray, goals: Objectives, top: int) -> None:
        self.folder, self.goals, self.top = folder, goals, top
        self.bounds = {unit: np.zeros((len(lengths), 2), np.int64) for unit in ("tokens", "positions")}
        self.files: dict[str, Any] = {}
        self.embeddings: list[tuple[np.ndarray, np.ndarray]] = []

    def write(self, rows: np.ndarray, signals: Signals, mask: Tensor, positions: Tensor | None) -> None:
        """Keep the outputs of a batch of rows."""
        if self.goals.hidden_states:
            self._note("tokens", rows, mask.sum(1).numpy())
            self._append("states", signals.last[mask.bool()].bfloat16().view(torch.int16))
        elif self.goals.embedding_cosine or self.goals.embedding_similarity:
            embedding = pooled(signals.last, mask, self.goals.pooling)
            self.embeddings.append((rows, embedding.bfloat16().view(torch.int16).numpy()))
        if self.goals.logits and isinstance(signals.logits, Tensor):
            counts = np.ones(len(rows), np.int64) if positions is None else positions.sum(1).numpy()
            self._note("positions", rows, counts)
            log_p = torch.log_softmax(signals.logits.float() / self.goals.temperature, -1)
            values, index = log_p.topk(min(self.top, log_p.shape[1]), dim=1)
            self._append("top_index", index.int())
            self._append("top_log_p", values.half())

    def _note(self, unit: str, rows: np.ndarray, counts: np.ndarray) -> None:
        ends = self.bounds[unit].max() + counts.cumsum()
        self.bounds[unit][rows] = np.stack([ends - counts, ends], 1)

    def _append(self, name: str, part: Tensor) -> None:
        array = part.contiguous().numpy()
        if name not in self.files:
            self.files[name] = (self.folder / f"{name}.raw").open("wb"), array.dtype, array.shape[1]
        self.files[name][0].write(array.tobytes())

    def close(self) -> None:
        """Give the files their heads, and write the bounds."""
        for name, (file, dtype, width) in self.files.items():
            file.close()
            raw = self.folder / f"{name}.raw"
            values = np.memmap(raw, dtype, "r").reshape(-1, width)
            np.save(self.folder / f"{name}.npy", values)
            raw.unlink()
        for unit, bounds in self.bounds.items():
            np.save(self.folder / f"{unit}.npy", bounds)
        if self.embeddings:
            rows = np.concatenate([rows for rows, _ in self.embeddings])
            values = np.concatenate([values for _, values in self.embeddings])
            ordered = np.empty_like(values)
            ordered[rows] = values
            np.save(self.folder / "embeddings.npy", ordered)
