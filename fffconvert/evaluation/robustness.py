"""Shifted inputs: how quality and routes change on other domains, languages, spellings and lengths."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from fffconvert.evaluation.ablation import quality_task
from fffconvert.evaluation.compare import figure, measure_as, share_retained
from fffconvert.evaluation.data import NotThere, Row, Table, find_file, read_table, read_text
from fffconvert.evaluation.routes import Visits, watched
from fffconvert.evaluation.subject import Subject
from fffconvert.evaluation.tasks import TASKS, Options, Task, causal
from fffconvert.store import digest, once
from fffconvert.surgery import layers_of

DOMAINS = {
    "wikipedia": "text/wiki_en/test",
    "novels": "text/books/test",
    "news": "text/news_abc2006",
    "biomedicine": "ood/biomed_pubmedqa",
    "law": "ood/legal_federalist",
    "spoken-law": "ood/legal_scotus_oral_arguments",
    "reviews": "ood/reviews/books",
    "tweets": "ood/tweets/sentiment.test",
    "python": "ood/code_python",
    "c++": "ood/code_cpp_cuda",
    "reactions": "mlm/reactions_uspto_50k/test",
}
FOREIGN = {"several-languages": "ood/nonenglish_mixed", "chinese": "ood/nonenglish_wiki_zh"}
TRANSLATIONS = ("de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
TEXT_COLUMNS = {"ood/biomed_pubmedqa": ("context",)}
LINES = 300
"""Lines (or windows, or pairs) of each kind of input unless limited otherwise."""
TYPOS = {"typos-5%": 0.05, "typos-20%": 0.2}
"""Share of words with a typo."""
SHORT = 32
"""Tokens of a window, where short inputs are windows of little context."""


@dataclass(frozen=True)
class Shift:
    """One kind of input.

    Attributes:
        name: As in the results.
        kind: "domain", "language", "typos", "case" or "length".
        task: What is measured on it.
        data: What the task measures on.
    """

    name: str
    kind: str
    task: Task
    data: Any


@dataclass(frozen=True)
class RobustnessRow:
    """The model on one kind of input.

    Attributes:
        name: Of the input.
        kind: Of the shift.
        metric: What is measured; None where nothing could be, as are the next three.
        value: The model's.
        ci95: Its 95 % interval.
        n: Number of examples.
        teacher: The teacher's value.
        retained: What the model retains of it.
        routing_overlap: The share of tokens that go to the same leaves as in the first row, the input in its
            own domain: 1 - total variation, mean over the trees. None without FFF layers.
        neurons_used: Share of the stored neurons that some token of this input visited.
    """

    name: str
    kind: str
    metric: str | None = None
    value: float | None = None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    teacher: float | None = None
    retained: float | None = None
    routing_overlap: float | None = None
    neurons_used: float | None = None


@dataclass(frozen=True)
class Robustness:
    """The model on shifted inputs."""

    rows: tuple[RobustnessRow, ...]
    task: str = ""
    limit: int | None = None


def measure_robustness(subject: Subject, teacher: Subject | None, options: Options) -> Robustness:
    """Measure a model on shifted inputs.

    Sentence encoders are judged by similarity on the pairs of STS-B, changed or translated, and, where there
    are no labels, by agreement with the teacher; language models by their own loss on the text.

    Args:
        subject: The model; routing is left null if it has no FFF layers.
        teacher: The model before conversion; without it nothing is said about texts without labels but how
            they are routed.
        options: Of the call.
    """
    base = quality_task(subject)
    shifts = shifts_of(base, options)
    rows: list[RobustnessRow] = []
    first: dict[str, Any] = {}
    for shift in tqdm(shifts, desc="robustness", unit="input", disable=None):
        metric = shift.task.metrics[0]
        if shift.task.beside_teacher and teacher is None:
            result = _routed(shift, subject, None, options, measured=False)
        else:
            result = _routed(shift, subject, teacher, options)
        first = first or result["visits"]
        found = figure(metric, result) if result["units"] else {}
        original = retained = None
        if teacher is not None and not shift.task.beside_teacher:
            other = once(
                "evaluations",
                digest("shift", shift.task.name, shift.data, options.limit, teacher.key),
                lambda shift=shift: measure_as(shift.task, shift.data, teacher, options),  # type: ignore[misc]
            )
            original = figure(metric, other)["value"]
            if found["value"] is not None and original is not None:
                retained = share_retained(metric, found["value"], original)
        row = RobustnessRow(
            shift.name,
            shift.kind,
            **found,
            teacher=original,
            retained=retained,
            routing_overlap=overlap(first, result["visits"]),
            neurons_used=neurons_used(subject, result["visits"]),
        )
        rows.append(row)
    return Robustness(tuple(rows), base.name, options.limit)


def _routed(
    shift: Shift,
    subject: Subject,
    teacher: Subject | None,
    options: Options,
    measured: bool = True,
) -> dict[str, Any]:
    """What a model does on a kind of input, with the leaves that it visits."""
    beside = None if teacher is None or not shift.task.beside_teacher else teacher.key
    key = digest("routed", shift.task.name, shift.data, options.limit, subject.key, beside, measured)

    def run() -> dict[str, Any]:
        visits = Visits(subject.model)
        with watched(subject.model, visits):
            result = measure_as(shift.task, shift.data, subject, options, teacher if measured else subject)
        return {
            **result,
            "units": result["units"] if measured else [],
            "visits": {name: counts.tolist() for name, counts in visits.counts.items()},
        }

    return once("evaluations", key, run)


def overlap(first: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """How much two distributions over leaves have in common: 1 - total variation, mean over the trees."""
    shares = []
    for name in first:
        both = [torch.tensor(visits[name], dtype=torch.float64) for visits in (first, other)]
        p, q = (counts / counts.sum(1, keepdim=True).clamp(min=1) for counts in both)
        shares.append(torch.minimum(p, q).sum(1).mean())
    return float(torch.stack(shares).mean()) if shares else None


def neurons_used(subject: Subject, visits: Mapping[str, Any]) -> float | None:
    """Share of the neurons of nodes and leaf blocks that were visited at all."""
    used, stored = 0, 0
    for name, placed in layers_of(subject.model).items():
        reached, spec = torch.tensor(visits[name]) > 0, placed.layer.spec
        used += spec.leaf_width * int(reached.sum())
        stored += spec.trees * (spec.nodes + spec.leaf_width * spec.leaves)
        while reached.shape[1] > 1:
            reached = reached.view(len(reached), -1, 2).any(2)
            used += int(reached.sum())
    return used / stored if stored else None


def shifts_of(base: Task, options: Options) -> list[Shift]:
    """The input in its own domain, then all shifted ones whose data is there."""
    return _pair_shifts(base, options) if base.name == "sts-b" else _text_shifts(base, options)


def _pair_shifts(base: Task, options: Options) -> list[Shift]:
    pairs, _ = base.read(options)
    rows: list[Row] = list(pairs)
    found = [Shift("in-domain", "domain", base, rows)]

    def changed(change: Callable[[str], str]) -> list[Row]:
        return [{**row, **{name: change(row[name]) for name in ("sentence1", "sentence2")}} for row in rows]

    found += [Shift(name, kind, base, changed(change)) for name, kind, change in _changes()]
    by_length = sorted(rows, key=lambda row: len(row["sentence1"]) + len(row["sentence2"]))
    third = max(2, len(rows) // 3)
    found += [
        Shift("short", "length", base, by_length[:third]),
        Shift("long", "length", base, by_length[-third:]),
    ]
    for language in TRANSLATIONS:
        table = Table(
            (f"ood/multilingual_sts/{language}.test",),
            ("PhilipMay/stsb_multi_mt", language, "test"),
            ("sentence1", "sentence2"),
            labels=(0.0, 5.0),
            renamed={"label": "similarity_score"},
        )
        try:
            translated, _ = read_table(table, options.data_dir, options.limit)
        except NotThere:
            continue
        found.append(Shift(language, "language", base, list(translated)))
    return [*found, *_documents({**DOMAINS, **FOREIGN}, TASKS["agreement"], options)]


def _text_shifts(base: Task, options: Options) -> list[Shift]:
    documents, _ = base.read(options)
    lines = [line for document in documents for line in document.splitlines() if line.strip()]
    lines = lines[: options.limit or LINES]
    found = [Shift("in-domain", "domain", base, ("\n".join(lines),))]
    for name, kind, change in _changes():
        found.append(Shift(name, kind, base, ("\n".join(map(change, lines)),)))
    if base.name == "mlm":
        parts = [" ".join(line.split()[:8]) for line in lines]
        found += [
            Shift("short", "length", base, ("\n".join(parts),)),
            Shift("long", "length", base, (" ".join(line.strip() for line in lines),)),
        ]
    else:
        short = dataclasses.replace(base, name=f"{base.name}-{SHORT}", measure=partial(causal, length=SHORT))
        found.append(Shift("short", "length", short, found[0].data))
    return [*found, *_documents({**DOMAINS, **FOREIGN}, base, options)]


def _documents(places: Mapping[str, str], task: Task, options: Options) -> list[Shift]:
    """Texts of other domains and languages, as far as the data folder has them."""
    found = []
    for name, place in places.items():
        if options.data_dir is None:
            break
        try:
            path = find_file(options.data_dir, (place,))
        except NotThere:
            continue
        documents = read_text([path], TEXT_COLUMNS.get(place, ()))
        lines = [line for document in documents for line in document.splitlines() if line.strip()]
        random.Random(0).shuffle(lines)
        kind = "language" if name in FOREIGN else "domain"
        found.append(Shift(name, kind, task, ("\n".join(lines[: options.limit or LINES]),)))
    return found


def _changes() -> list[tuple[str, str, Callable[[str], str]]]:
    """Changed spellings: name, kind, and what makes them of a text, the same every time."""
    typos = [(name, "typos", partial(with_typos, share=share)) for name, share in TYPOS.items()]
    return [*typos, ("lower-case", "case", str.lower), ("upper-case", "case", str.upper)]


def with_typos(text: str, share: float) -> str:
    """Swap, drop, double or replace a letter inside a share of the words, by the text alone."""
    rng = random.Random(text)
    words = text.split(" ")
    for index, word in enumerate(words):
        if len(word) < 4 or rng.random() >= share:
            continue
        at = rng.randrange(1, len(word) - 2)
        letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
        words[index] = rng.choice(
            (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[: at + 1] + word[at:],
                word[:at] + letter + word[at + 1 :],
            )
        )
    return " ".join(words)
