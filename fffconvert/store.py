"""What is stored between runs: named by the content that it depends on, and written atomically.

Fitted layers of conversions that were stopped, measured results, curves and teachers' outputs lie in one
folder, by kind and key; `fffconvert cache` lists and clears them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from fffconvert.errors import FFFError
from fffconvert.private_names import attention_of
from fffconvert.records import plain
from fffconvert.tree import FFFLayer

LENGTH = 32
"""Hexadecimal digits of a name."""
BLOCK = 1 << 20
"""Bytes of a file that are read at a time."""
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh")
ORIGINS = ("_name_or_path", "transformers_version", "dtype")
"""What a config says of where its model came from, not of what it computes."""


def digest(*parts: Any) -> str:
    """A name for a result: of all that it depends on, and of the code that computes it.

    Args:
        *parts: As for `fingerprint`.
    """
    return fingerprint(code(), *parts)


def fingerprint(*parts: Any) -> str:
    """A name for content.

    Args:
        *parts: Plain values, tensors, arrays, dataclasses, models (weights, structure, and how they are
            deployed), tokenizers, and paths of files or folders, of which the content counts; in lists and
            mappings, too.

    Raises:
        TypeError: A part is of another kind, so that its content is not known.
    """
    plain = json.dumps(parts, sort_keys=True, default=_content)
    return hashlib.sha256(plain.encode()).hexdigest()[:LENGTH]


@dataclass(frozen=True)
class Entry:
    """One stored thing.

    Attributes:
        kind: "layers", "evaluations" or "curves".
        path: Its file or folder.
        bytes: What it takes.
        modified: When it was written last, in seconds since 1970.
    """

    kind: str
    path: Path
    bytes: int
    modified: float


def root() -> Path:
    """The folder of all that is stored: $FFFCONVERT_CACHE, or fffconvert in the user's cache folder."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FFFCONVERT_CACHE") or users / "fffconvert")


def folder_of(kind: str) -> Path:
    """Where things of a kind lie."""
    return root() / kind


def entries() -> list[Entry]:
    """All that is stored, the oldest first."""
    paths = [path for kind in sorted(root().glob("*")) if kind.is_dir() for path in sorted(kind.iterdir())]
    found = []
    for path in paths:
        files = [file.stat() for file in (path.rglob("*") if path.is_dir() else (path,)) if file.is_file()]
        modified = max((file.st_mtime for file in files), default=path.stat().st_mtime)
        found.append(Entry(path.parent.name, path, sum(file.st_size for file in files), modified))
    return sorted(found, key=lambda entry: entry.modified)


def remove(stored: Iterable[Entry]) -> None:
    """Delete stored things; what needs them later is computed anew."""
    for entry in stored:
        if entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)


def once(kind: str, key: str, compute: Callable[[], Any]) -> dict[str, Any]:
    """Values of plain JSON that were computed under a key before, or are computed and stored now.

    Args:
        kind: Names the folder.
        key: Of all that they depend on, see `digest`.
        compute: Computes them.
    """
    path = folder_of(kind) / f"{key}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    value: dict[str, Any] = plain(compute())
    with written(path) as partial:
        partial.write_text(json.dumps(value), encoding="utf-8")
    return value


def write_json(path: Path, document: Any) -> None:
    """Write a document, of records or plain values, as JSON, atomically.

    Raises:
        FFFError: The file cannot be written.
    """
    try:
        with written(path) as partial:
            partial.write_text(json.dumps(plain(document), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise FFFError(f"cannot write {path}: {error.strerror}; choose another `output`") from error


@cache
def code() -> str:
    """A name for what computes: the sources of this package, and the versions of torch and transformers."""
    package, state = Path(__file__).parent, hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in SOURCES):
        state.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return fingerprint(state.hexdigest(), version("torch"), version("transformers"))


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a path to write a file or folder to; it takes the place of `path` when the body has ended.

    If the body fails, nothing stays. A folder that another process has put there meanwhile is left: under
    the same name it says the same.
    """
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if not (partial.is_dir() and path.is_dir()):
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def _content(value: Any) -> Any:
    """A value as one that JSON knows."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        kind = f"{value.dtype} on {value.device.type}"
        return [kind, list(value.shape), _bytes(flat.view(torch.uint8).numpy() if flat.numel() else b"")]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), _bytes(np.ascontiguousarray(value).tobytes())]
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(value, PreTrainedTokenizerBase):
        return _tokenizer(value)
    if isinstance(value, Path):
        files = sorted(value.rglob("*")) if value.is_dir() else [value]
        return [[str(file.relative_to(value)), _file(file)] for file in files if not file.is_dir()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [type(value).__name__, fields]
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no fingerprint")


def _bytes(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _file(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(BLOCK):
            state.update(part)
    return state.hexdigest()


def _module(module: nn.Module) -> Any:
    """Weights and structure, and what computes each FFF layer where no gradient is asked for."""
    config = getattr(module, "config", None)
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else {}
    ways = {
        name: [layer.inference.backend, layer.inference.dtype, layer.inference.dense, layer.inference.trunk]
        for name, layer in module.named_modules()
        if isinstance(layer, FFFLayer)
    }
    return {
        "class": type(module).__name__,
        "config": {name: value for name, value in values.items() if name not in ORIGINS},
        "attention": attention_of(config) if isinstance(config, PreTrainedConfig) else None,
        "structure": repr(module),
        "state": {**dict(module.named_buffers()), **module.state_dict()},
        "ways": ways,
    }


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> Any:
    """What it makes of text; truncation and padding of its last call are no part of that."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = tokenizer.get_vocab()
    if backend is not None:
        model = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    settings = {name: getattr(tokenizer, name, None) for name in ("padding_side", "model_max_length")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [type(tokenizer).__name__, model, settings, special]
