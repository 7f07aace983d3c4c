"""The output folder is atomic: refused, out of space, killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import tqdm.auto
import yaml
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, BertTokenizer, PreTrainedModel

from fffconvert.errors import FFFError
from fffconvert.hub import check_output, save
from fffconvert.hub.metrics import BlockResult, Metrics
from fffconvert.records import read

RECIPE = {"model": "somebody/original", "depth": 2, "include": []}
BLOCK = {
    "name": "encoder.layer.0.intermediate.dense",
    "trees": 2,
    "depth": 2,
    "trunk": 1,
    "leaf_width": 0,
    "active_width": 7,
    "active_fraction": 0.175,
    "r2_heldout": 0.5,
    "token_r2_heldout": 0.5,
    "parameters": 2000,
    "parameters_before": 1000,
    "macs_share": 0.6,
}
METRICS = Metrics((BlockResult(**BLOCK),), seconds=1.5)
SAVE_WITH_LITTLE_ROOM = """
import resource, sys
from transformers import BertForMaskedLM
import fffconvert
from fffconvert.hub import save
from fffconvert.hub.metrics import BlockResult, Metrics
model = BertForMaskedLM.from_pretrained(sys.argv[1])
recipe, metrics = eval(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
save(model, None, sys.argv[2], recipe=recipe, metrics=metrics)
"""
FILES = {"README.md", "config.json", "fffconvert.yaml", "metrics.json", "model.safetensors"}


@pytest.fixture
def model(
    bert: PreTrainedModel, to_converted: Callable[[PreTrainedModel], PreTrainedModel]
) -> PreTrainedModel:
    return to_converted(bert)


def write(model: PreTrainedModel, output: Path, **options: Any) -> Path:
    return save(model, None, output, recipe=RECIPE, metrics=METRICS, **options)


def is_whole(folder: Path, model: PreTrainedModel) -> bool:
    again = BertForMaskedLM.from_pretrained(folder)
    equal = all(torch.equal(again.get_parameter(name), value) for name, value in model.named_parameters())
    return equal and FILES <= {file.name for file in folder.iterdir()}


def test_the_folder_holds_everything(model: PreTrainedModel, tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    output = save(model, tokenizer, tmp_path / "new" / "out", recipe=RECIPE, metrics=METRICS)
    assert output == tmp_path / "new" / "out"
    assert is_whole(output, model)
    assert yaml.safe_load((output / "fffconvert.yaml").read_text()) == RECIPE
    assert read(Metrics, json.loads((output / "metrics.json").read_text())) == METRICS
    assert "somebody/original" in (output / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(output)("hello") == tokenizer("hello")
    assert type(AutoModel.from_pretrained(output)).__name__ == "BertModel"
    assert [path.name for path in output.parent.iterdir()] == ["out"]


class TestRefused:
    def test_an_existing_folder(self, model: PreTrainedModel, tmp_path: Path):
        write(model, tmp_path / "out")
        before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
        with pytest.raises(FFFError, match="out exists; choose another `output`, or add `overwrite=True`"):
            write(model, tmp_path / "out")
        assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_to_overwrite_what_is_not_ours(self, model: PreTrainedModel, tmp_path: Path, kind: str):
        (tmp_path / "out").mkdir() if kind == "folder" else (tmp_path / "out").touch()
        with pytest.raises(FFFError, match=r"holds no fffconvert.yaml, so `overwrite` leaves it alone"):
            write(model, tmp_path / "out", overwrite=True)

    def test_a_folder_below_a_file(self, model: PreTrainedModel, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(FFFError, match="cannot write"):
            write(model, tmp_path / "file" / "out")

    def test_too_little_space(self, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(FFFError, match="has 1 MiB free, the model takes 32 MiB"):
            write(model, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_all_of_it(model: PreTrainedModel, tmp_path: Path):
    write(model, tmp_path / "out")
    (tmp_path / "out" / "report.html").touch()
    with torch.no_grad():
        model.cls.predictions.bias.fill_(1)
    write(model, tmp_path / "out", overwrite=True)
    assert is_whole(tmp_path / "out", model)
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"]
)
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_what_fails_midway_leaves_what_was_there(
    model: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    overwrite: bool,
):
    if overwrite:
        write(model, tmp_path / "out")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    expected = FFFError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is FFFError else None):
        write(model, tmp_path / "out", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if overwrite else [])
    assert not overwrite or is_whole(tmp_path / "out", model)


def test_a_full_disk_is_one_line(converted: Path, tmp_path: Path):
    """The system refuses to write more than 20 kB to a file."""
    arguments = [str(converted), str(tmp_path / "out"), repr((RECIPE, METRICS))]
    command = [sys.executable, "-c", SAVE_WITH_LITTLE_ROOM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "FFFError: cannot write" in done.stderr.splitlines()[-1]
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


class TestKilled:
    def test_what_it_left_is_cleared_away(self, model: PreTrainedModel, tmp_path: Path):
        """By process numbers that no process can have."""
        write(model, tmp_path / "out")
        (tmp_path / ".out.partial-99999999").mkdir()
        (tmp_path / ".out.old-99999999").mkdir()
        mine = tmp_path / f".out.partial-{os.getppid()}"
        mine.mkdir()
        check_output(tmp_path / "out", overwrite=True)
        assert {path.name for path in tmp_path.iterdir()} == {"out", mine.name}

    def test_an_output_moved_aside_comes_back(self, model: PreTrainedModel, tmp_path: Path):
        write(model, tmp_path / "out").rename(tmp_path / ".out.old-99999999")
        (tmp_path / ".out.partial-99999999").mkdir()
        with pytest.raises(FFFError, match="exists"):
            check_output(tmp_path / "out", overwrite=False)
        assert is_whole(tmp_path / "out", model)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_at_any_moment_it_leaves_nothing_or_a_whole_folder(self, model: PreTrainedModel, tmp_path: Path):
        output = tmp_path / "out"
        # How long a process takes to write, as those that are killed: a new one is slower than this one.
        process, started = writing(model, output), time.monotonic()
        while not output.exists():
            assert time.monotonic() - started < 60, "nothing was written"
            time.sleep(0.001)
        takes = time.monotonic() - started
        process.kill()
        process.join()
        shutil.rmtree(output)
        rng, whole = random.Random(0), 0
        for _ in range(20):
            process = writing(model, output)
            time.sleep(rng.uniform(0, 3 * takes))
            process.kill()
            process.join()
            if output.exists():
                assert is_whole(output, model)
                whole += 1
        assert whole > 0
        check_output(output, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def writing(model: PreTrainedModel, output: Path) -> ForkProcess:
    """A process that writes until it is killed."""
    process = multiprocessing.get_context("fork").Process(target=write_repeatedly, args=(model, output))
    process.start()
    return process


def write_repeatedly(model: PreTrainedModel, output: Path) -> None:
    # The lock of progress bars is shared with the parent, which would wait for ever if this died holding it.
    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(threading.RLock())
    while True:
        write(model, output, overwrite=True)
