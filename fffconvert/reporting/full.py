"""`report --full`: from a model's name to its report, step after step; a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fffconvert import hub
from fffconvert.benchmarks import bench
from fffconvert.benchmarks.model.torch_models import CONFIG
from fffconvert.controls import Control, make_control
from fffconvert.conversion import convert_model, prepare
from fffconvert.distillation import distill
from fffconvert.distillation.checks import is_causal
from fffconvert.distillation.distiller import has_token_head
from fffconvert.distillation.recipe import Data, Objectives, Recipe, Stage, Trained, Unit
from fffconvert.errors import FFFError, first_line
from fffconvert.evaluation import evaluate, sweep
from fffconvert.evaluation.tasks import Options, read_documents
from fffconvert.fit.corpus import names_of_texts
from fffconvert.hub.metrics import Metrics
from fffconvert.hub.output import RECIPE, read_conversion
from fffconvert.options import ConvertOptions, ReportOptions, TextSource
from fffconvert.options.bench import missing_packages
from fffconvert.reporting.documents import BENCHMARK
from fffconvert.reporting.writing import Report, check_tools, write_report
from fffconvert.store import fingerprint

SETTINGS, CONTENT = "full.json", "full.content"
ENGLISH = "text/wiki_en/train.jsonl.gz"
"""Text in the data folder to fit and train on unless other text is named."""
PATHS, LEAVES = "paths", "leaves"
PATH_DEPTH = 11
LEAF_DEPTH, LEAF_SHARE = 4, 0.07
"""Leaves of this share of the dense block's neurons: less than that is better spent on paths alone."""
DEPTHS, TREES = (4, 8, 11), (1, 4)
"""The grid of the sweep."""
CONTROLS = (Control.DENSE, Control.ABLATED, Control.RANDOM_ROUTING)
FINE_TUNED = (Control.DENSE, Control.ABLATED)
"""Those that are fine-tuned too, which takes minutes for each."""
SECTIONS = ("robustness", "ablation", "routing")
EPOCHS = 3
BASELINES = ("torch", "ort-int8")
"""What the speed is compared with, where its packages are installed."""
LENGTH, GENERATED = 128, 16
SUBSET = 500
"""Examples of large tasks; four times as many are trained on."""


def full_report(model: str, options: ReportOptions) -> Report:
    """Convert a model at two budgets, make and train the controls, evaluate, sweep, and write the page.

    Args:
        model: Hub id, folder or `pkg:DIST[/PATH]`.
        options: How large the report is; a second call with the same ones goes on from there.

    Raises:
        FFFError: Bad input, or the folder holds a full report of something else.
    """
    check_tools()
    data_dir, folder = Path(options.data_dir or "").expanduser(), Path(options.output or "").expanduser()
    texts = _texts(options, data_dir)
    progress = options.progress
    document = {
        "model": model,
        "data_dir": str(options.data_dir),
        "calibration": names_of_texts(texts),
        **{name: getattr(options, name) for name in ("tokens", "train_tokens", "limit")},
        "text_columns": list(options.text_columns),
    }
    _check(folder, document)  # before the model is read, which takes a while
    read_documents(Options(data_dir))  # that it lacks must not come to light after the training
    loaded = hub.load(model)
    kind, recipes = _plan(loaded, options)
    files = [path for path in map(Path, names_of_texts(texts)) if path.is_file()]
    _claim(folder, document, fingerprint(loaded.model, loaded.tokenizer, files))
    measured = []
    for name, recipe in recipes.items():
        converted = folder / f"{name}-converted"
        if not (converted / RECIPE).is_file():
            progress(f"{name}: convert to {converted}")
            convert_model(model, recipe.replace(output=converted, calibration=texts))
        subject, controls = _trained(converted, folder, name, kind, options, texts)
        measured.append(subject)
        for tasks, compared, measured_as in _tasks(kind, options):
            progress(f"{name}: evaluate {', '.join(tasks)}")
            evaluate(
                subject,
                tasks,
                teacher=model,
                controls={control.value: controls[control.value] for control in compared},
                data_dir=data_dir,
                **measured_as,
            )
        if not (subject / BENCHMARK).is_file():
            progress(f"{name}: time it against the original")
            bench(subject, **_benchmark(subject, kind))
    progress("sweep over trees and depth")
    sweep(
        model,
        folder / "sweep",
        DEPTHS,
        [kind.task],
        trees=TREES,
        calibration=texts,
        text_columns=options.text_columns,
        lines=options.lines,
        tokens=options.tokens,
        data_dir=data_dir,
        limit=options.limit,
    )
    return write_report([*measured, folder / "sweep"], folder)


@dataclass(frozen=True)
class _Kind:
    """What a model is for.

    Attributes:
        task: The sweep goes by it.
        tasks: It is measured on them without training.
        tuned: Tasks that it is fine-tuned for.
        objectives: What training matches.
    """

    task: str
    tasks: tuple[str, ...]
    tuned: tuple[str, ...]
    objectives: Objectives


ENCODER = _Kind(
    "sts-b",
    ("sts", "agreement"),  # similarity hardly needs feedforward blocks; how near the teacher is, does
    ("rte", "cola"),
    Objectives(hidden_states=1.0, embedding_cosine=5.0, embedding_similarity=20.0),
)
MASKED = _Kind("mlm", ("mlm",), ("rte", "cola"), Objectives(hidden_states=1.0, logits=1.0, mlm=1.0))
CAUSAL = _Kind("perplexity", ("perplexity",), (), Objectives(hidden_states=1.0, logits=1.0, clm=1.0))


def _plan(loaded: hub.Loaded, options: ReportOptions) -> tuple[_Kind, dict[str, ConvertOptions]]:
    """What the model is, and the recipes of the two budgets."""
    recipe = ConvertOptions(
        depth=PATH_DEPTH, tokens=options.tokens, text_columns=options.text_columns, lines=options.lines
    )
    prepared = prepare(loaded.model, recipe.replace(tokens=1000, tokenizer=loaded.tokenizer))
    width = max(1, round(LEAF_SHARE * prepared.sites[0].d_hidden))
    leaves = recipe.replace(depth=LEAF_DEPTH, leaf_width=width)
    kind = CAUSAL if is_causal(loaded.model) else MASKED if has_token_head(loaded.model) else ENCODER
    return kind, {PATHS: recipe, LEAVES: leaves}


def _trained(
    converted: Path,
    folder: Path,
    name: str,
    kind: _Kind,
    options: ReportOptions,
    texts: Iterable[Any],
) -> tuple[Path, dict[str, Path]]:
    """The conversion and its controls, all trained alike, or none of them."""
    subject, recipe, progress = converted, None, options.progress
    if options.train_tokens:
        recipe = _distillation(kind, options)
        subject = folder / f"{name}-trained"
        if not (subject / RECIPE).is_file():
            progress(f"{name}: train on {options.train_tokens:,} tokens")
            distill(converted, None, texts, recipe, output=subject)
    controls = {}
    for control in CONTROLS:
        controls[control.value] = place = folder / f"{name}-{control.value}"
        if (place / RECIPE).is_file():
            continue
        progress(f"{name}: make the control {control.value}")
        if recipe is not None:
            distill(converted, None, texts, recipe, output=place, control=control)
        else:
            _save_control(converted, control, place)
    return subject, controls


def _distillation(kind: _Kind, options: ReportOptions) -> Recipe:
    # As in recipes/minilm-laptop.yaml: steps on fitted trees undo more than a short run wins back.
    stage = Stage(
        tokens=options.train_tokens,
        objectives=kind.objectives,
        learning_rate=3e-4,
        trained=Trained(trees=False),
    )
    unit = Unit.DOCUMENT if kind is CAUSAL else Unit.SENTENCE
    data = Data(text=options.text_columns, lines=options.lines, unit=unit, rows=50_000)
    return Recipe(stages=(stage,), data=data)


def _benchmark(subject: Path, kind: _Kind) -> dict[str, Any]:
    """How the speed of the whole model is measured: as short and long inputs as the model takes."""
    config = json.loads((subject / CONFIG).read_text(encoding="utf-8"))
    longest = min(config.get("max_position_embeddings") or LENGTH, LENGTH)
    return {
        "baselines": tuple(name for name in BASELINES if not missing_packages(name)),
        "sizes": ((1, min(32, longest)), (8, longest)),
        "threads": torch.get_num_threads(),
        "generate": GENERATED if kind is CAUSAL else 0,
        "seconds": 1.0,
    }


def _texts(options: ReportOptions, data_dir: Path) -> list[Any]:
    """Text to fit on and to train on.

    Raises:
        FFFError: None is named, and there is none in the data folder.
    """
    if options.calibration is not None:
        return list(options.calibration)
    path = data_dir / ENGLISH
    if not path.is_file():
        raise FFFError(f"{data_dir} has no {ENGLISH}; name text to fit on with `calibration`")
    return [TextSource(path.resolve())]


def _save_control(converted: Path, control: Control, place: Path) -> None:
    made = make_control(converted, control)
    hub.save(
        made.model,
        made.tokenizer,
        place,
        recipe={**read_conversion(converted), "source": str(converted), "control": control.value},
        metrics=Metrics((), control=control.value),
    )


def _tasks(
    kind: _Kind, options: ReportOptions
) -> Iterator[tuple[Sequence[str], Sequence[Control], dict[str, Any]]]:
    """What is evaluated, beside which controls, with the options of each call."""
    limit = options.limit
    yield kind.tasks, CONTROLS, {"limit": limit}
    if kind.tuned:
        yield kind.tuned, FINE_TUNED, {"limit": limit, "epochs": EPOCHS}
        yield ["sst-2"], FINE_TUNED, {"limit": min(limit or SUBSET, SUBSET), "epochs": EPOCHS}
    yield SECTIONS, (), {"limit": limit}


def _check(folder: Path, document: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than this report."""
    try:
        if (folder / SETTINGS).is_file():
            if (folder / SETTINGS).read_text(encoding="utf-8") != _written(document):
                raise FFFError(f"{folder} holds a full report with other settings; choose another `output`")
        elif folder.is_dir() and any(folder.iterdir()):
            raise FFFError(f"{folder} exists and holds no full report; choose another `output`")
    except OSError as error:
        raise FFFError(f"cannot read {folder}: {first_line(error)}; choose another `output`") from None


def _claim(folder: Path, document: dict[str, Any], content: str) -> None:
    """Make the folder, and note what report it holds.

    Raises:
        FFFError: It holds one of other weights or text by the same names.
    """
    try:
        own = folder / CONTENT
        if own.is_file() and own.read_text(encoding="utf-8") != content:
            raise FFFError(
                f"{folder} holds a full report of other weights or text by the same names; "
                "choose another `output`"
            )
        folder.mkdir(parents=True, exist_ok=True)
        own.write_text(content, encoding="utf-8")
        (folder / SETTINGS).write_text(_written(document), encoding="utf-8")
    except OSError as error:
        raise FFFError(f"cannot write {folder}: {first_line(error)}; choose another `output`") from None


def _written(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
