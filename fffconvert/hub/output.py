"""Writes a converted model's folder atomically: whole or absent, whenever the process dies.

Reads back the recipe in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from transformers import PreTrainedModel

from fffconvert.errors import FFFError, first_line
from fffconvert.hub.card import CARD, model_card
from fffconvert.hub.metrics import Metrics
from fffconvert.records import plain

RECIPE = "fffconvert.yaml"
METRICS = "metrics.json"
_MODULES = "modules.json"
_BESIDES_WEIGHTS = 32 << 20
"""Bytes that tokenizer, config, card and metrics may take; the largest tokenizers take some 30 MB."""


def save(
    model: PreTrainedModel,
    tokenizer: Any | None,
    output: str | Path,
    *,
    recipe: Mapping[str, Any],
    metrics: Metrics,
    files: Sequence[Path] = (),
    overwrite: bool = False,
    original: Path | None = None,
) -> Path:
    """Write a converted model with all that belongs to it.

    Everything goes to a sibling folder first, which then takes its place.

    Args:
        model: The model.
        tokenizer: The model's tokenizer, if it has one.
        output: The folder to write.
        recipe: How the model was made, in plain values: `fffconvert.yaml`.
        metrics: What was measured: `metrics.json`.
        files: Further files and folders to copy into it.
        overwrite: Replace an earlier output; it is there until the new one is complete.
        original: Folder of the model that was converted; how sentence-transformers is to use it goes along.

    Returns:
        The folder, as an absolute path.

    Raises:
        FFFError: The folder cannot be written, or exists already; nothing is left behind.
    """
    needed = sum(p.numel() * p.element_size() for p in model.parameters()) + _BESIDES_WEIGHTS
    with writing(output, needed, overwrite=overwrite) as partial:
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if original is not None:
            _copy_sentence_transformers(original, partial)
        (partial / CARD).write_text(model_card(recipe, metrics), encoding="utf-8")
        (partial / RECIPE).write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
        (partial / METRICS).write_text(json.dumps(plain(metrics), indent=2) + "\n", encoding="utf-8")
        for path in files:
            if path.is_dir():
                shutil.copytree(path, partial / path.name)
            else:
                shutil.copyfile(path, partial / path.name)
    return Path(output).expanduser().resolve()


def read_conversion(folder: str | Path) -> dict[str, Any]:
    """The conversion's recipe in a folder of ours, with what a distillation added to it.

    Raises:
        FFFError: There is none.
    """
    path = Path(folder, RECIPE)
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FFFError(f"{folder} is no conversion: {first_line(error)}; see fffconvert convert") from error
    if not isinstance(recipe, dict) or "model" not in recipe:
        raise FFFError(f"{path} names no model; expected what fffconvert convert writes")
    return recipe


def _copy_sentence_transformers(original: Path, output: Path) -> None:
    """Copy how a sentence encoder pools and normalises; of modules with weights of their own, all files."""
    modules = original / _MODULES
    if not modules.is_file():
        return
    for name in (_MODULES, "sentence_bert_config.json", "config_sentence_transformers.json"):
        if (original / name).is_file():
            shutil.copyfile(original / name, output / name)
    for module in json.loads(modules.read_text(encoding="utf-8")):
        folder = original / str(module.get("path") or "")
        if folder != original and folder.resolve().is_relative_to(original.resolve()) and folder.is_dir():
            shutil.copytree(folder, output / folder.relative_to(original), dirs_exist_ok=True)


@contextmanager
def writing(output: str | Path, needed: int, *, overwrite: bool) -> Iterator[Path]:
    """Write a folder atomically: the body fills a sibling, which then takes its place.

    Args:
        output: The folder to write.
        needed: Bytes that it will take.
        overwrite: Replace an earlier output; it is there until the new one is complete.

    Yields:
        The folder to fill.

    Raises:
        FFFError: The folder cannot be written, or exists already; nothing is left behind.
    """
    output = check_output(output, overwrite=overwrite)
    partial = _aside(output, "partial")
    with _one_line(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if free < needed:
            raise FFFError(
                f"{output.parent} has {free >> 20} MiB free, the model takes {needed >> 20} MiB; "
                "free some space or choose another `output`"
            )
        try:
            yield partial
            _flush(partial)
            _move_into_place(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_output(output: str | Path, *, overwrite: bool) -> Path:
    """Refuse an output folder that must not be written, and clear away what a killed run left beside it.

    Raises:
        FFFError: It exists without `overwrite`, or with it but fffconvert did not write it.
    """
    output = Path(output).expanduser().resolve()
    with _one_line(output):
        if output.parent.is_dir():
            _recover(output)
        if not output.exists():
            return output
        if not overwrite:
            raise FFFError(f"output folder {output} exists; choose another `output`, or add `overwrite=True`")
        if not (output / RECIPE).is_file():
            raise FFFError(
                f"{output} holds no {RECIPE}, so `overwrite` leaves it alone; choose another `output`"
            )
    return output


def _move_into_place(partial: Path, output: Path) -> None:
    old = _aside(output, "old")
    if output.exists():
        os.rename(output, old)
    os.rename(partial, output)
    _sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(output: Path) -> None:
    """Bring back an output that a killed run had moved aside, and delete what such runs left half written."""
    ours = re.compile(re.escape(f".{output.name}.") + r"(partial|old)-(\d+)")
    for entry in list(output.parent.iterdir()):
        match = ours.fullmatch(entry.name)
        if match is None or _alive(int(match[2])):
            continue
        if match[1] == "old" and not output.exists():
            os.rename(entry, output)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _aside(output: Path, what: str) -> Path:
    return output.with_name(f".{output.name}.{what}-{os.getpid()}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _one_line(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FFFError(
            f"cannot write {output}: {reason}; free some space or choose another `output`"
        ) from error
