"""`fffconvert bench-layer`: what is measured in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fffconvert.benchmarks import card, check, machine
from fffconvert.benchmarks.contestants import Dense, Entry, layers, place, times
from fffconvert.benchmarks.cuda import cuda_rows
from fffconvert.benchmarks.depths import draw, sweep
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.benchmarks.summary import rows as rows_of
from fffconvert.benchmarks.summary import summarise
from fffconvert.benchmarks.timing import FRESH_BYTES, Contestant, kept_memory, page_fault_us, threads_restored
from fffconvert.benchmarks.train import train_rows
from fffconvert.benchmarks.workload import Workload, workloads
from fffconvert.options import BenchLayerOptions, values_of
from fffconvert.options.fields import verb_of_options

WARM_REPEATS = 3
"""Least calls of each contestant once more, with freed memory kept."""


@verb_of_options(BenchLayerOptions)
def bench_layer(options: BenchLayerOptions) -> dict[str, Any]:
    """Measure FFF layers against dense blocks.

    Args:

    Returns:
        `rows`, `summary`, `depths` (what the plot shows, empty without one), `machine`, `problems` (what
        could not be measured), `warnings` (what makes the figures doubtful), `published` (what others
        measured on a GPU, and where that is written; null on the CPU) and `settings`.

    Raises:
        FFFError: A setting does not fit the machine or the model.
        WrongOutputError: A backend's outputs are not those of the layer.
    """
    settings = LayerBench(**values_of(options))
    load, jitters = machine.load(), [machine.jitter()]
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    depths: list[dict[str, Any]] = []
    gpu = _card() if settings.device == "cuda" else None
    runs: list[_Inference] = []
    with threads_restored():
        if settings.train:
            for workload in workloads(settings):
                rows += train_rows(workload, settings, problems)
        elif gpu is not None:
            for workload in workloads(settings):
                rows += cuda_rows(workload, settings, problems, card.Card(), gpu["copy_gb_s"])
        else:
            runs = [_Inference(workload, settings) for workload in workloads(settings)]
            for run in runs:
                rows += run.rows()
                problems += run.blocks.problems
        if settings.plot is not None:
            depths = sweep(settings)
            draw(depths, settings.plot)
        if runs:  # last, because the allocator does not quite return to what it was
            _add_warm_figures(runs, rows, settings)
    jitters.append(machine.jitter())
    return {
        "rows": rows,
        "summary": summarise(rows),
        "depths": depths,
        "machine": machine.describe() | {"load_1min": load, "jitter": jitters, "card": gpu},
        "problems": list(dict.fromkeys(problems)),
        "warnings": machine.warnings(load, jitters, settings.threads),
        "published": None if gpu is None else card.PUBLISHED,
        "settings": {name: getattr(settings, name) for name in ("device", "seconds", "repeats", "compile")},
    }


def _card() -> dict[str, Any]:
    return card.describe() | {"copy_gb_s": card.Card().copy_gb_s()}


class _Inference:
    """The measurements of one workload."""

    def __init__(self, workload: Workload, settings: LayerBench) -> None:
        self.workload = workload
        self.settings = settings
        self.layers = layers(workload, settings)
        self.blocks = Dense.of(workload, settings.dtypes)
        self._truths: dict[tuple[str, int], check.Truth] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        settings = self.settings
        points = [(threads, tokens) for threads in settings.threads for tokens in settings.sizes]
        bar = tqdm(points, desc=f"{self.workload.name}, {self.workload.inputs} inputs", disable=None)
        for threads, tokens in bar:
            torch.set_num_threads(threads)
            batches = self.workload.batches(tokens, settings.seed)
            with torch.inference_mode():
                errors = self.errors(batches)
                entries = self.entries(batches, compile_=settings.compile)
                found = times(entries, settings, bar, place(self.workload, threads, tokens))
                faults = page_fault_us(
                    tokens, self.workload.layer.spec.d_out, seconds=settings.seconds, repeats=settings.repeats
                )
            common = {"mode": "inference", "threads": threads, "tokens": tokens, "page_fault_us": faults}
            yield from rows_of(self.workload, entries, found, errors, **common)

    def entries(self, batches: list[Tensor], *, compile_: bool) -> list[Entry]:
        own = [Entry(*variant, None, Contestant(layer, batches)) for variant, layer in self.layers.items()]
        return own + self.blocks.entries(batches, compile_)

    def errors(self, batches: list[Tensor]) -> dict[str, dict[str, float | None]]:
        """What the check of each backend finds, in calls like those that are timed."""
        tokens = len(batches[0])
        found: dict[str, dict[str, float | None]] = {}
        some = batches[: math.ceil(check.CHECKED_TOKENS / tokens)]
        step = math.ceil(tokens / check.MOST_TOKENS)
        for (backend, dtype), layer in self.layers.items():
            if (dtype, tokens) not in self._truths:
                self._truths[dtype, tokens] = check.truth(self.workload.layer, dtype, torch.cat(some)[::step])
            truth = self._truths[dtype, tokens]
            who = f"backend {backend} with {dtype} rows ({self.workload.name}, {tokens} tokens)"
            y = torch.cat([layer(x) for x in some])[::step]
            found[f"{backend} {dtype}"] = check.findings(y, truth, who)
        return found


def _add_warm_figures(runs: list[_Inference], rows: list[dict[str, Any]], settings: LayerBench) -> None:
    """Time again what gives outputs large enough for fresh pages, with freed memory kept mapped.

    Compiled blocks are left out, and the others make fewer calls.
    """
    settings = replace(settings, repeats=min(WARM_REPEATS, settings.repeats), limit=settings.limit / 2)
    points = [
        (run, threads, tokens)
        for run in runs
        for threads in settings.threads
        for tokens in settings.sizes
        if tokens * run.workload.layer.spec.d_out * 4 >= FRESH_BYTES
    ]
    with torch.inference_mode(), kept_memory() as kept:
        bar = tqdm(points if kept else [], desc="warm outputs", disable=None)
        for run, threads, tokens in bar:
            torch.set_num_threads(threads)
            entries = run.entries(run.workload.batches(tokens, settings.seed), compile_=False)
            found = times(entries, settings, bar, f"warm outputs, {place(run.workload, threads, tokens)}")
            point = (run.workload.name, run.workload.inputs, threads, tokens)
            kinds = {(entry.backend, entry.dtype, entry.variant): found.get(entry.key) for entry in entries}
            for row in rows:
                timing = kinds.get((row["backend"], row["dtype"], row["variant"]))
                if timing and point == tuple(row[k] for k in ("layer", "inputs", "threads", "tokens")):
                    row["warm_output_us"] = timing.median_us
                    row["warm_page_faults"] = timing.page_faults
