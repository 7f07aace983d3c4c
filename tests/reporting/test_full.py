"""One command makes the whole report of a tiny model, and goes on where it was stopped."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from fffconvert.benchmarks import bench
from fffconvert.cli import app
from fffconvert.errors import FFFError
from fffconvert.evaluation import metrics
from fffconvert.reporting import full, report
from fffconvert.store import write_json

WORDS = [f"{first}{second}" for first in "bdfgkl" for second in ("a", "e", "i", "o", "u")]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder with a tokenizer."""
    folder = tmp_path_factory.mktemp("full") / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=40, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the tasks of a full report, a few rows each."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("data")

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(4, 9)))

    def pair(label: float) -> dict[str, Any]:
        return {"sentence1": sentence(), "sentence2": sentence(), "label": label}

    for name in ("glue/stsb/test.labelled", "embed/sts12"):
        rows = [pair(round(rng.uniform(0, 5), 1)) | {"split": "test"} for _ in range(16)]
        write_rows(folder / f"{name}.jsonl.gz", rows)
    for task in ("rte", "cola", "sst2"):
        for split, count in (("train", 16), ("dev", 12)):
            made = [
                pair(n % 2) if task == "rte" else {"sentence": sentence(), "label": n % 2}
                for n in range(count)
            ]
            write_rows(folder / f"glue/{task}/{split}.jsonl.gz", made)
    text = [{"text": " ".join(sentence() for _ in range(8))} for _ in range(60)]
    write_rows(folder / full.ENGLISH, text)
    write_rows(folder / "text/books/test.jsonl.gz", text[:10])
    (folder / "text/wikitext2").mkdir()
    (folder / "text/wikitext2/wiki.test.raw.txt").write_text("\n\n".join(row["text"] for row in text[:10]))
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full, "DEPTHS", (1, 2))
    monkeypatch.setattr(full, "TREES", (1,))
    monkeypatch.setattr(full, "PATH_DEPTH", 3)
    monkeypatch.setattr(full, "LEAF_DEPTH", 1)
    monkeypatch.setattr(full, "EPOCHS", 1)
    monkeypatch.setattr(full, "BASELINES", ("torch",))
    monkeypatch.setattr(metrics, "RESAMPLES", 20)
    documents: list[Any] = []

    def short(model: Path, **options: Any) -> None:
        """Times the first model alone, and briefly: each of its runtimes is a process that loads torch."""
        if not documents:
            documents.append(bench(model, **{**options, "seconds": 0.1}))
        write_json(model / full.BENCHMARK, replace(documents[0], model=str(model)))

    monkeypatch.setattr(full, "bench", short)


@pytest.mark.slow
def test_is_made_by_one_call_and_goes_on_after_it_was_stopped(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings: dict[str, Any] = {"data_dir": data, "tokens": 2000, "train_tokens": 2000, "limit": 8}

    def make(**changes: Any) -> Any:
        return report(model, tmp_path / "out", full=True, **settings | changes)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(full, "sweep", stop)
        with pytest.raises(KeyboardInterrupt):
            make()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(made) == 2 * (2 + len(full.CONTROLS))
    with pytest.raises(FFFError, match="with other settings"):
        make(limit=9)
    text = data / full.ENGLISH
    before = text.read_bytes()
    write_rows(text, [{"text": "other text of the same name"}])
    with pytest.raises(FFFError, match="of other weights or text by the same names"):
        make()
    text.write_bytes(before)
    said: list[str] = []
    done = make(progress=said.append)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == made
    assert not [line for line in said if "convert to" in line or "train on" in line or "control" in line]
    assert not done.page.missing
    for name in ("paths-trained", "leaves-trained"):
        tasks = json.loads((tmp_path / "out" / name / "eval.json").read_text())["tasks"]
        assert {"sts-b", "agreement", "rte", "cola", "sst-2"} <= set(tasks)
        controls = ("dense", "ablated", "random_routing")
        assert all(tasks[task][key] is not None for task in ("sts-b", "agreement") for key in controls)
        assert tasks["sts-b"]["teacher"] is not None
        card = (tmp_path / "out" / name / "README.md").read_text()
        assert "| sts-b (first 8 rows only) | spearman |" in card
    assert len(json.loads((tmp_path / "out/sweep/sweep.json").read_text())["rows"]) == 2


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--full",), "--full expects one model, --data-dir and --output"),
        (("--limit", "5"), "--limit belongs to --full"),
        (("--full", "--data-dir", "{empty}", "-o", "{out}"), "name text to fit on with --calibration"),
        (("--full", "--data-dir", "{data}", "-o", "{empty}/.."), "exists and holds no full report"),
        (("--full", "--data-dir", "{no_text}", "-o", "{out}"), "has no text/wikitext2"),
    ],
)
def test_refuses_bad_input_in_one_line(
    model: str, data: Path, tmp_path: Path, arguments: tuple[str, ...], reason: str
):
    (tmp_path / "empty").mkdir()
    no_text = shutil.copytree(data, tmp_path / "no_text", ignore=shutil.ignore_patterns("wikitext2"))
    places = {"empty": tmp_path / "empty", "data": data, "no_text": no_text, "out": tmp_path / "out"}
    done = run(model, *(argument.format(**places) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert reason in done.stderr
    assert not (tmp_path / "out").exists()
