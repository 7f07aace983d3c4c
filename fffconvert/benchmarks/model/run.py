"""`fffconvert bench MODEL`: what is measured in which order, and what is made of it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fffconvert import hub
from fffconvert.benchmarks import machine
from fffconvert.benchmarks.model import inputs
from fffconvert.benchmarks.model.exported import write_onnx
from fffconvert.benchmarks.model.process import Runtime, WorkerError
from fffconvert.benchmarks.model.quality import Quality
from fffconvert.benchmarks.model.rows import ModelBenchmark, ModelRow, ProfileRow
from fffconvert.benchmarks.model.settings import EXPORTED_TREES, ModelBench
from fffconvert.benchmarks.model.torch_models import dense, stored_config, trees
from fffconvert.errors import FFFError
from fffconvert.estimation.models import preset
from fffconvert.fit.length import longest
from fffconvert.location.inputs import example_inputs
from fffconvert.options import BenchOptions, values_of, verb
from fffconvert.options.bench import EXPORTED
from fffconvert.records import plain
from fffconvert.store import write_json

ROUNDS = 5
"""How often the runtimes take turns at each size."""
PROFILED = ("torch", "fffconvert", "fffconvert-int8", "deployed")
PROFILE_CALLS = 5
MOST_ERROR = {"float32": 1e-3, "rounded": 0.5}
"""Median relative error of a position above which outputs are wrong: of exact runtimes, and of those that
compute in fewer bits."""
ROUNDED = ("ort-int8", "openvino", "fffconvert-int8", "deployed", "exported-int8")
TORCH_TREES = ("undeployed", "fffconvert", "fffconvert-int8", "deployed")
TREES = (*TORCH_TREES, *EXPORTED_TREES.values())
GENERATING = ("torch", "ablated", *TORCH_TREES)
"""Those that keep keys and values of the tokens before."""
Size = tuple[int, int]


@verb(BenchOptions)
def bench(model: str | Path, options: BenchOptions) -> ModelBenchmark:
    """Measure a converted model against its original on the runtimes that people use.

    Every runtime has a process of its own; they take turns, and all but one stand still.

    Args:
        model: A converted or deployed folder; with `depth`, any model, whose blocks are then replaced by
            random layers in memory.

    Raises:
        FFFError: A setting does not fit the model.
    """
    settings = _within_positions(ModelBench(model=str(model), **values_of(options)))
    output = settings.output
    if output is None and settings.depth is None:
        own_folder = hub.resolve(settings.model).folder
        output = None if own_folder is None else own_folder / "bench.json"
    values = plain(settings)
    own = _own(settings)
    load, jitters = machine.load(), [machine.jitter()]
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fffconvert-bench-") as temporary:
        folder = Path(temporary)
        quality = Quality(settings, values, folder) if settings.task else None
        causal = _prepare(folder, values, settings, problems)
        names = [*dict.fromkeys(("torch", "ablated", *settings.baselines)), "reference", *own]
        with _running(names, folder, values, problems) as runtimes:
            run = _Run(runtimes, folder, settings, problems)
            rows = run.rows()
            scores = [] if quality is None else run.scores(quality)
            generation = run.generation() if settings.generate and causal else []
            profile = run.profile() if settings.profile else []
            described = run.described()
    if settings.generate and not causal:
        problems.append("`generate`: the model is no causal language model")
    jitters.append(machine.jitter())
    found = ModelBenchmark(
        settings.model,
        tuple(rows),
        tuple(generation),
        tuple(scores),
        tuple(described),
        tuple(profile),
        machine.describe() | {"load_1min": load, "jitter": jitters},
        tuple(problems),
        tuple(machine.warnings(load, jitters, (settings.threads,))),
        values,
        None if output is None else str(output),
    )
    if output is not None:
        write_json(output, found)
    return found


def _within_positions(settings: ModelBench) -> ModelBench:
    """The settings, with lengths that the model has positions for."""
    known = preset(settings.model)
    options: dict[str, Any] = {"device": "meta", "trust_remote_code": settings.trust_remote_code}
    model = known.build() if known else hub.load_random(settings.model, **options).model
    sizes = ((batch, longest(model, None, length, warn=True)) for batch, length in settings.sizes)
    return dataclasses.replace(settings, sizes=tuple(dict.fromkeys(sizes)))


def _own(settings: ModelBench) -> list[str]:
    """The forms of the converted model to measure."""
    exported = [EXPORTED_TREES[name] for name in settings.baselines if name in EXPORTED_TREES]
    if settings.depth is None and stored_config(settings.model).get("deployment"):
        return ["undeployed", "deployed", *exported]
    return ["undeployed", "fffconvert", "fffconvert-int8", *exported]


def _prepare(folder: Path, values: dict[str, Any], settings: ModelBench, problems: list[str]) -> bool:
    """Write inputs and exported files; tells whether the model generates text."""
    model = _seeded(dense, values)
    config: Any = model.config
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    for size in settings.sizes:
        batch, length = size
        example = example_inputs(model, batch=batch, length=length)
        arrays = {name: tensor.numpy() for name, tensor in example.items()}
        inputs.write(folder, size, arrays, vocabulary)
    wanted = [name for name in settings.baselines if name in EXPORTED]
    if wanted:
        _export(model, folder, "ort", wanted, problems)
    ours = [EXPORTED_TREES[name] for name in wanted if name in EXPORTED_TREES]
    if ours:
        _export(_seeded(trees, values), folder, "exported", ours, problems)
    return "CausalLM" in type(model).__name__


def _seeded(build: Callable[[dict[str, Any]], Any], values: dict[str, Any]) -> Any:
    """Build a model whose random weights are those that the processes draw."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(values)


def _export(model: Any, folder: Path, name: str, runtimes: Sequence[str], problems: list[str]) -> None:
    try:
        write_onnx(model, folder, name, int8=f"{name}-int8" in runtimes)
    except FFFError as error:
        problems.append(f"{', '.join(runtimes)}: {error}")


@contextmanager
def _running(
    names: Sequence[str], folder: Path, values: dict[str, Any], problems: list[str]
) -> Iterator[dict[str, Runtime]]:
    """The processes of the runtimes that can be set up."""
    runtimes: dict[str, Runtime] = {}
    try:
        for name in tqdm(names, desc="load", disable=None):
            try:
                runtimes[name] = Runtime(name, folder, values)
            except WorkerError as error:
                problems.append(str(error))
        yield runtimes
    finally:
        for runtime in runtimes.values():
            runtime.close()


class _Run:
    """The measurements, once all runtimes are there."""

    def __init__(
        self, runtimes: dict[str, Runtime], folder: Path, settings: ModelBench, problems: list[str]
    ) -> None:
        self._runtimes, self._folder = runtimes, folder
        self._settings, self._problems = settings, problems
        self._peak: dict[str, float] = {}
        self._first: dict[str, float] = {}

    def rows(self) -> list[ModelRow]:
        rows: list[ModelRow] = []
        for size in tqdm(self._settings.sizes, desc="sizes", disable=None):
            errors = self._check(size)
            rows += self._rows_of(size, errors, self._times(size, list(errors)))
        return rows

    def _rows_of(
        self, size: Size, errors: dict[str, dict[str, float | None]], times: dict[str, list[int]]
    ) -> Iterator[ModelRow]:
        medians = {name: float(np.median(ns)) / 1e6 for name, ns in times.items()}
        batch, length = size
        for name, ns in times.items():
            p20, median, p80 = (float(p) / 1e6 for p in np.percentile(ns, [20, 50, 80]))
            ratios = {other: medians[other] / median for other in medians}
            yield ModelRow(
                name,
                *size,
                median,
                p20,
                p80,
                len(ns),
                1e3 * batch * length / median,
                ratios.get("torch"),
                ratios.get("ort-int8"),
                ratios.get("undeployed"),
                medians["torch"] / medians["ablated"] if "ablated" in medians else None,
                errors[name]["max_error"],
                errors[name]["median_error"],
            )

    def _check(self, size: Size) -> dict[str, dict[str, float | None]]:
        """First calls, whose outputs are compared; runtimes that are wrong take no further part."""
        found: dict[str, np.ndarray] = {}
        for name in list(self._runtimes):
            path = self._folder / f"{name}.npy"
            answer = self._ask(name, "first", size=size, output=str(path))
            if answer is not None:
                self._first.setdefault(name, answer["first_ms"])
                found[name] = np.load(path)
        errors: dict[str, dict[str, float | None]] = {}
        for name, y in found.items():
            if name in ("ablated", "reference"):
                errors[name] = {"max_error": None, "median_error": None}
                continue
            trees = name in TREES
            errors[name] = _errors(y, found["reference" if trees else "torch"])
            limit = MOST_ERROR["rounded" if name in ROUNDED else "float32"]
            if not (errors[name]["median_error"] or 0.0) <= limit:
                self._problems.append(
                    f"{name}: outputs at {size[0]}x{size[1]} are off by {errors[name]['median_error']:.2g} "
                    f"(median of the positions), at most {limit:g} is allowed: not timed"
                )
                del errors[name]
        errors.pop("reference", None)
        return errors

    def _times(self, size: Size, names: list[str]) -> dict[str, list[int]]:
        """Times of single calls, the runtimes in turns."""
        times: dict[str, list[int]] = {name: [] for name in names}
        seconds = self._settings.seconds / ROUNDS
        for turn in range(ROUNDS):
            start = turn % len(names)
            for name in (*names[start:], *names[:start]):
                answer = self._ask(name, "time", size=size, seconds=seconds)
                times[name] += answer["ns"] if answer is not None else []
        return {name: ns for name, ns in times.items() if ns}

    def scores(self, quality: Quality) -> list[dict[str, Any]]:
        """How well each runtime that was not refused does the task."""
        found = []
        names = [name for name in self._runtimes if name != "reference"]
        for name in tqdm(names, desc="quality", disable=None):
            try:
                value = quality.score(self._runtimes[name].ask)
            except WorkerError as error:
                self._drop(name, "quality", error)
                continue
            found.append({"runtime": name, "task": self._settings.task, "metric": "spearman", "value": value})
        return found

    def generation(self) -> list[dict[str, Any]]:
        """Tokens generated one by one after the first size's length, batch 1."""
        size = next((size for size in self._settings.sizes if size[0] == 1), None)
        if size is None:
            self._problems.append("`generate` needs a size with batch 1, as in `sizes=1x32`")
            return []
        times: dict[str, list[int]] = {}
        names = [name for name in self._runtimes if name in GENERATING]
        for turn in range(ROUNDS):
            start = turn % len(names)
            for name in (*names[start:], *names[:start]):
                answer = self._ask(name, "generate", size=size, tokens=self._settings.generate)
                times.setdefault(name, []).extend(answer["ns"] if answer is not None else [])
        medians = {name: float(np.median(ns)) / 1e6 for name, ns in times.items() if ns}
        cap = medians["torch"] / medians["ablated"] if {"torch", "ablated"} <= medians.keys() else None
        return [
            {
                "runtime": name,
                "prompt": size[1],
                "median_ms": median,
                "tokens_per_second": 1e3 / median,
                "speedup_vs_torch": medians["torch"] / median if "torch" in medians else None,
                "amdahl_cap": cap,
            }
            for name, median in medians.items()
        ]

    def profile(self) -> list[ProfileRow]:
        """Milliseconds by part of the model, where the model runs in torch."""
        rows = []
        for name in (name for name in PROFILED if name in self._runtimes):
            for size in self._settings.sizes:
                answer = self._ask(name, "parts", size=size, calls=PROFILE_CALLS)
                if answer is not None:
                    rows.append(ProfileRow(name, *size, answer["parts"]))
        return rows

    def described(self) -> list[dict[str, Any]]:
        """What each runtime takes to start, and its memory."""
        return [
            {
                "runtime": name,
                "load_seconds": runtime.load_seconds,
                "first_call_ms": self._first.get(name),
                "peak_mb": self._peak.get(name),
                **(self._ask(name, "weights") or {"weights_mb": None}),
            }
            for name, runtime in list(self._runtimes.items())
            if name != "reference"
        ]

    def _ask(self, name: str, what: str, **arguments: Any) -> dict[str, Any] | None:
        """An answer; None, with a note, from a runtime that fails, which takes no further part."""
        if name not in self._runtimes:
            return None
        try:
            answer = self._runtimes[name].ask(what, **arguments)
        except WorkerError as error:
            self._drop(name, what, error)
            return None
        if "peak_mb" in answer:
            self._peak[name] = answer["peak_mb"]
        return answer

    def _drop(self, name: str, what: str, error: WorkerError) -> None:
        """Note why a runtime takes no further part."""
        self._problems.append(f"{what}: {error}")
        self._runtimes.pop(name).close()


def _errors(y: np.ndarray, expected: np.ndarray) -> dict[str, float | None]:
    """The largest error over the largest output, and the median over positions of the relative error."""
    if y.shape != expected.shape:
        return {"max_error": float("inf"), "median_error": float("inf")}
    difference = (y - expected).reshape(-1, y.shape[-1])
    sizes = np.linalg.norm(expected.reshape(difference.shape), axis=-1)
    relative = np.linalg.norm(difference, axis=-1) / np.maximum(sizes, 1e-30)
    largest = float(np.abs(expected).max()) or 1.0
    return {
        "max_error": float(np.abs(difference).max()) / largest,
        "median_error": float(np.median(relative)),
    }
